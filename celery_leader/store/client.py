"""One connection to Redis that answers soon, or says why not.

Guaranteed: one socket, used by one thread, and no call that waits longer than its time limit. A
refusal or an outage becomes one sentence that names the setting to look at. Not guaranteed: that
a command without an answer was not executed.

redis-py's own retries are not used. With them, one renewal against a mute server takes close to a
minute.
"""

from __future__ import annotations

import hashlib
import selectors
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_leader.compat.redis import socket_of
from celery_leader.errors import StoreUnavailable


class RedisClient:
    """A connection to one Redis, made when it is first needed and again after a failure.

    Args:
        connect: makes a connected redis-py ``Connection``; it resolves the address
            anew each time.
        setting: the setting that names this Redis, for messages.
        operation_timeout: seconds that one answer may take.
        place: names the place that ``connect`` leads to; when it changes, the next call makes
            a new connection.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        setting: str,
        operation_timeout: float,
        place: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect
        self._setting = setting
        self._operation_timeout = operation_timeout
        self._place = place
        self._connected_to: object = None
        self._connection: Any = None

    def close(self) -> None:
        """Drop the connection; the next call makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def call_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send ``commands`` in one round trip; a refused one yields its ``StoreUnavailable``.

        Raises:
            StoreUnavailable: there was no answer. The commands may have been executed.
        """
        with self._talking() as connection:
            replies = self._exchange(connection, commands)
        return self._told(replies)

    def run(self, calls: Sequence[tuple[Script, Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run scripts in one round trip, or two when Redis does not know one yet.

        If a key is damaged or of another type than its script needs, the answer to that script is
        a ``StoreUnavailable`` that names the key.
        """
        with self._talking() as connection:
            replies = self._exchange(connection, [script.by_sha(*rest) for script, *rest in calls])
            unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                texts = [calls[i][0].by_text(*calls[i][1:]) for i in unknown]
                for i, reply in zip(unknown, self._exchange(connection, texts), strict=True):
                    replies[i] = reply
            for i, reply in enumerate(replies):
                if isinstance(reply, ResponseError):
                    replies[i] = self._of_a_key(connection, reply, *calls[i][:2]) or reply
        return self._told(replies)

    def run_one(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one script.

        Raises:
            StoreUnavailable: there was no answer, or Redis refused.
        """
        (answer,) = self.run([(script, keys, args)])
        if isinstance(answer, StoreUnavailable):
            raise answer
        return answer

    def wait_for_replicas(self, count: int) -> None:
        """Return once ``count`` replicas have what this connection has written.

        Raises:
            StoreUnavailable: fewer have it after half the time of an answer, or nobody knows.
        """
        wrote = self._connection
        millis = max(1, int(1000 * self._operation_timeout / 2))
        with self._talking() as connection:
            (reply,) = self._told(self._exchange(connection, [["WAIT", count, millis]]))
        if isinstance(reply, StoreUnavailable):
            raise reply
        # Redis counts every replica for a connection that has written nothing.
        reached = reply if connection is wrote else 0
        if reached < count:
            raise StoreUnavailable(
                f"leader_wait_replicas is {count}, and {reached} replica(s) of the Redis in"
                f" {self._setting} confirmed the lease"
            )

    def damaged(self, key: str) -> StoreUnavailable:
        """The refusal that names the key of a record that makes no sense."""
        return StoreUnavailable(
            f"in {self._setting}, the record in {key} is damaged; candidates write it anew within"
            " a lease; if there are none, delete that key",
            lasting=True,
        )

    def _of_a_key(
        self, connection: Any, exc: ResponseError, script: Script, keys: Sequence[str]
    ) -> StoreUnavailable | None:
        """The refusal that names the key that made a script fail; ``None`` if no key did."""
        if DAMAGED in str(exc):
            return self.damaged(keys[0])
        if "WRONGTYPE" not in str(exc):
            return None
        expected = list(zip(keys, script.types_of(keys), strict=True))
        types = self._exchange(connection, [["TYPE", key] for key, _ in expected])
        for (key, wanted), found in zip(expected, types, strict=True):
            if isinstance(found, bytes) and wanted and found.decode() not in ("none", wanted):
                return StoreUnavailable(
                    f"in {self._setting}, the key {key} is a {found.decode()} and must be a"
                    f" {wanted}; delete that key",
                    lasting=True,
                )
        return None

    def wait_for(
        self, command: Sequence[Any], timeout: float, wake: int | None, patience: float
    ) -> Any:
        """Send a blocking command; return its reply, or ``None`` once ``wake`` can be read.

        ``patience``: how many seconds the reply may be later than ``timeout``.

        A command that is still blocked is given up by closing the connection: Redis
        then drops it, and nothing else of ours is on that socket.
        """
        with self._talking() as connection:
            connection.send_packed_command(connection.pack_command(*command), check_health=False)
            sock = socket_of(connection)
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_READ)
                if wake is not None:
                    selector.register(wake, selectors.EVENT_READ)
                events = selector.select(timeout + patience)
                ready = [key.fileobj for key, _ in events]
            if sock in ready:
                return connection.read_response()
        self.close()
        if not ready:
            raise StoreUnavailable(f"{self._setting}: no answer from Redis to a blocking read")
        return None

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        try:
            if self._place() != self._connected_to:
                self.close()
            if self._connection is None:
                self._connected_to = self._place()
                self._connection = self._connect()
                # Redis cuts the connection on a script that lacks a password. PING gets an error.
                self._exchange(self._connection, [["PING"]])
            yield self._connection
        except (RedisError, OSError) as exc:
            self.close()
            if without_echo(exc) != str(exc):
                raise self._unavailable(exc) from None  # its text must not be shown
            raise self._unavailable(exc) from exc
        except BaseException:
            # An unread answer would be taken for the answer to the next command.
            self.close()
            raise

    def _exchange(self, connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except ResponseError as exc:
                replies.append(_as_outside_a_script(exc))
        return replies

    def _told(self, replies: list[Any]) -> list[Any]:
        """``replies`` with a sentence in place of each refusal."""
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            # A demoted master: its address must be looked up again.
            self.close()
        return [
            self._unavailable(reply) if isinstance(reply, RedisError) else reply
            for reply in replies
        ]

    def _unavailable(self, exc: Exception) -> StoreUnavailable:
        """``exc`` in one sentence that names the setting to look at."""
        text = without_echo(exc) or type(exc).__name__
        setting = self._setting
        match exc:
            case AuthenticationError():
                advice = f"Redis refused the user name or password in {setting}: {text}"
            case NoPermissionError():
                advice = f"the Redis user in {setting} may not do this: {text}"
            case ReadOnlyError():
                advice = f"{setting} names a read-only replica; name its master: {text}"
            case OutOfMemoryError():
                advice = f"the Redis in {setting} is full; raise its maxmemory: {text}"
            case InvalidResponse():
                advice = f"what answers at {setting} is not Redis"
            case ResponseError() if "NOAUTH" in text or "Authentication" in text:
                advice = f"Redis asks for a password; put it into {setting}: {text}"
            case ResponseError() if any(sign in text for sign in _NO_RIGHT_IN_A_SCRIPT):
                advice = f"the Redis user in {setting} may not do this: {text}"
            case ResponseError() if "unknown command" in text.lower():
                advice = f"{setting} names a server older than Redis 6.2: {text}"
            case ResponseError() if "WRONGTYPE" in text:
                advice = (
                    f"in {setting}, one of the keys celery-leader:... of this namespace is of"
                    f" another type than the README says; delete it: {text}"
                )
            case ResponseError():
                advice = f"the Redis in {setting} refused: {text}"
            case RedisTimeoutError() | TimeoutError():
                advice = (
                    f"the Redis in {setting} cannot be reached: {text}; it is stopped, overloaded"
                    " or cut off"
                )
            case _:
                why = text.rstrip(".")
                advice = (
                    f"the Redis in {setting} cannot be reached: {why}; start it, or correct"
                    f" {setting}"
                )
        return StoreUnavailable(advice, lasting=_is_lasting(exc))


# The texts of Redis 7.0 and of Redis 8.2.
_NO_RIGHT_IN_A_SCRIPT = ("The user executing the script can't", "ACL failure in script")

#: The error of a script whose record, in its first key, makes no sense.
DAMAGED = "celery-leader: damaged"


class Script:
    """A Lua script, called by its digest and sent whole when Redis does not know it.

    Args:
        text: the script.
        types: the types of its first keys, as the command ``TYPE`` names them.
        further: the type of all keys after these; empty if it is unknown.
    """

    def __init__(self, text: str, types: Sequence[str] = (), further: str = "") -> None:
        self._types = types
        self._further = further
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def types_of(self, keys: Sequence[str]) -> list[str]:
        """The type that each of ``keys`` must have; empty if it is unknown."""
        return [*self._types, *[self._further] * len(keys)][: len(keys)]

    def by_sha(self, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """The command that runs it by digest."""
        return ["EVALSHA", self._sha, len(keys), *keys, *args]

    def by_text(self, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """The command that runs it and teaches it to Redis."""
        return ["EVAL", self._text, len(keys), *keys, *args]


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


def _as_outside_a_script(exc: ResponseError) -> ResponseError:
    """Redis 6 hides what stopped a script behind "Error running script"."""
    for sign, kind in (("-READONLY ", ReadOnlyError), ("-OOM ", OutOfMemoryError)):
        if sign in str(exc):
            return kind(str(exc))
    return exc
