"""What can go wrong, as a caller sees it: one root and two leaves."""

from __future__ import annotations


class LeaderError(Exception):
    """Root of every error this package raises.

    Raised as itself for a mistake in the configuration: the message names the
    setting, argument or command to change.
    """


class NotLeader(LeaderError):
    """Raised by ``check_leader()`` when this process does not lead the election."""


class StoreUnavailable(LeaderError):
    """Nobody knows who leads: Redis could not be asked, or could not answer.

    This is not the answer "no". A candidate that gets it does not lead past the
    deadline it already had, and asks again.
    """
