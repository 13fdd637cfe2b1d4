"""What can go wrong, as a caller sees it: one root and two leaves."""

from __future__ import annotations

import re
from typing import Any

#: Matches a URL, most texts that hold a password, and any long text.
_TELLING = re.compile(r"[@/=]|.{101}", re.DOTALL)


class LeaderError(Exception):
    """Root of every error this package raises.

    Raised as itself for a mistake in the configuration: the message names the
    setting, argument or command to change.
    """


class NotLeader(LeaderError):
    """Raised by ``check_leader()`` when this process does not lead the election.

    The publish of a periodic message raises it too, if Redis refused because another leads.
    """


class StoreUnavailable(LeaderError):
    """Nobody knows who leads: Redis could not be asked, or could not answer.

    This is not the answer "no". A candidate that gets it does not lead past the
    deadline it already had, and asks again.

    Attributes:
        lasting: asking again will not help before somebody changes something, such as a
            password or a right.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


def shown(value: Any) -> str:
    """``value`` as a message may show it: numbers, short words and lists of them; else its type.

    A setting may hold the value of another setting by mistake, with a password in it.
    """
    return repr(value) if _is_harmless(value) else f"{kind_of(value)} that is not shown"


def _is_harmless(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_harmless, value))
    if isinstance(value, str):
        return not _TELLING.search(value)
    return value is None or isinstance(value, bool | int | float)


def kind_of(value: Any) -> str:
    """The type of ``value``, for a message that must not show the value at all."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
