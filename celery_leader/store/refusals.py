"""Refusals and outages of Redis, each in one sentence that names the setting to look at.

Guaranteed: no sentence repeats a command, which may hold a password.
"""

from __future__ import annotations

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_leader.errors import StoreUnavailable

# The texts of Redis 7.0 and of Redis 8.2.
_NO_RIGHT_IN_A_SCRIPT = ("The user executing the script can't", "ACL failure in script")

#: The error of a script whose record, in its first key, makes no sense.
DAMAGED = "celery-leader: damaged"


def in_words(exc: Exception, setting: str) -> StoreUnavailable:
    """What became of a command to the Redis in ``setting``, and what to do."""
    text = without_echo(exc) or type(exc).__name__
    match exc:
        case AuthenticationError():
            told = f"Redis refused the user name or password in {setting}: {text}"
        case NoPermissionError():
            told = f"the Redis user in {setting} may not do this: {text}"
        case ReadOnlyError():
            told = f"{setting} names a read-only replica; name its master: {text}"
        case OutOfMemoryError():
            told = f"the Redis in {setting} is full; raise its maxmemory: {text}"
        case InvalidResponse():
            told = f"what answers at {setting} is not Redis"
        case ResponseError() if "NOAUTH" in text or "Authentication" in text:
            told = f"Redis asks for a password; put it into {setting}: {text}"
        case ResponseError() if any(sign in text for sign in _NO_RIGHT_IN_A_SCRIPT):
            told = f"the Redis user in {setting} may not do this: {text}"
        case ResponseError() if "unknown command" in text.lower():
            told = f"{setting} names a server older than Redis 6.2: {text}"
        case ResponseError() if "WRONGTYPE" in text:
            told = (
                f"in {setting}, one of the keys celery-leader:... of this namespace is of"
                f" another type than the README says; delete it: {text}"
            )
        case ResponseError():
            told = f"the Redis in {setting} refused: {text}"
        case RedisTimeoutError() | TimeoutError():
            told = (
                f"the Redis in {setting} cannot be reached: {text}; it is stopped, overloaded"
                " or cut off"
            )
        case _:
            why = text.rstrip(".")
            told = (
                f"the Redis in {setting} cannot be reached: {why}; start it, or correct {setting}"
            )
    return StoreUnavailable(told, lasting=_is_lasting(exc))


def damaged_record(key: str, setting: str) -> StoreUnavailable:
    """The record in ``key`` makes no sense."""
    return StoreUnavailable(
        f"in {setting}, the record in {key} is damaged; candidates write it anew within a lease;"
        " if there are none, delete that key",
        lasting=True,
    )


def wrong_type(key: str, found: str, wanted: str, setting: str) -> StoreUnavailable:
    """The key ``key`` is of the type ``found``, and a script needs ``wanted``."""
    return StoreUnavailable(
        f"in {setting}, the key {key} is a {found} and must be a {wanted}; delete that key",
        lasting=True,
    )


def without_echo(exc: Exception) -> str:
    """The text of ``exc`` without the command that the server repeats: it may be ``AUTH``."""
    if isinstance(exc, InvalidResponse):
        return ""
    return str(exc).partition(", with args beginning with:")[0]


def _is_lasting(exc: Exception) -> bool:
    """Whether time alone will not help: somebody must change something.

    A replica may become a master, memory may be freed, loading and busy scripts end.
    """
    if isinstance(exc, ReadOnlyError | OutOfMemoryError | BusyLoadingError):
        return False
    return isinstance(exc, AuthenticationError | InvalidResponse | ResponseError) and not any(
        sign in str(exc) for sign in ("LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "MISCONF")
    )


def as_outside_a_script(exc: ResponseError) -> ResponseError:
    """Redis 6 hides what stopped a script behind "Error running script"."""
    for sign, kind in (("-READONLY ", ReadOnlyError), ("-OOM ", OutOfMemoryError)):
        if sign in str(exc):
            return kind(str(exc))
    return exc
