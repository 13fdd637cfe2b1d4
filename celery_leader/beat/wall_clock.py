"""The clock of a process, compared with the clock of Redis, which all beats share.

A beat whose clock is an hour ahead sends each tick an hour early, and stores a last run that is an
hour in the future. Guaranteed: once Redis has answered, the next check notices if the clock of the
process was set, wrong or right, even while Redis is away. Not known: which of the two clocks is
right.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

_LOOK = 10.0  # seconds between checks of the clock, if nothing else asks for one
_RIGHT_AGAIN = 0.9  # part of the tolerance; a clock at the limit must not fail and pass in turn


class WallClock:
    """A ``Requirement``: the clock of the process shows about the same time as that of Redis.

    Args:
        read: reads the clock of the process, in seconds since the epoch.
        tolerance: by how many seconds the two clocks may differ.
    """

    reason = "clock"
    relief = "its clock agrees with that of Redis again"
    level = logging.ERROR
    keeps_place = True

    def __init__(self, read: Callable[[], float], tolerance: float) -> None:
        self._read = read
        self._tolerance = tolerance
        # Seconds from the monotonic clock of the process, which nobody sets, to the clock of Redis.
        self._offset: float | None = None
        self._doubt = 0.0
        self._failed = False

    def heard(self, server_time: float, sent_at: float, now: float) -> None:
        """Note the time of Redis, from its answer to a request that was sent at ``sent_at``."""
        self._offset = server_time - (sent_at + now) / 2
        self._doubt = (now - sent_at) / 2

    def server_time(self, now: float) -> float:
        """The time by the clock of Redis; by our own clock before Redis has answered."""
        return self._read() if self._offset is None else now + self._offset

    def ahead(self, now: float) -> float:
        """By how many seconds our own clock is ahead; 0 before Redis has answered."""
        return 0.0 if self._offset is None else self._read() - now - self._offset

    def is_off(self, now: float) -> bool:
        """Whether the two clocks differ by more than the tolerance."""
        return abs(self.ahead(now)) > self._tolerance + self._doubt

    # -- from the election's thread -----------------------------------------------

    def fails(self, now: float) -> bool:
        """Like ``is_off``; but once the clocks were off, they must differ by clearly less."""
        bound = self._tolerance * (_RIGHT_AGAIN if self._failed else 1.0) + self._doubt
        self._failed = abs(self.ahead(now)) > bound
        return self._failed

    def look_again_at(self, now: float) -> float:
        """When to check the clock again."""
        return now + _LOOK

    def trouble(self, now: float) -> str:
        """Both times, and by how much they differ."""
        ahead = self.ahead(now)
        own, theirs = (_utc(each) for each in (self._read(), self.server_time(now)))
        which = "ahead of" if ahead > 0 else "behind"
        return f"its clock ({own}) is {abs(ahead):.0f} s {which} that of Redis ({theirs})"

    @property
    def cure(self) -> str:
        """What to do."""
        return (
            f"they differ by {self._tolerance:g} s (leader_beat_clock_tolerance) at most: set the"
            " wrong one right, and keep it so (NTP)"
        )


def _utc(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
