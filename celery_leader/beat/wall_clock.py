"""The time of day that a process goes by, compared with that of Redis, which all share.

A schedule is read off a clock. A beat whose clock is an hour ahead sends what is due in an
hour, and writes down that it ran in an hour. Time is an argument, the time of day is read
where it is asked about. Guaranteed: once Redis has answered, a clock that is set wrong or
right is noticed at the next question, also while Redis is away. Not known: which of the
two is right.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

_LOOK = 10.0  # seconds between looks at a clock that nobody asks about
_RIGHT_AGAIN = 0.9  # of the tolerance, so that a clock at its edge does not go to and fro


class WallClock:
    """A ``Requirement``: the process goes by about the same time as Redis.

    Args:
        read: the time of day by which the process goes, in seconds since the epoch.
        tolerance: by how many seconds the two may differ.
    """

    reason = "clock"
    relief = "its clock agrees with that of Redis again"
    level = logging.ERROR
    keeps_place = True

    def __init__(self, read: Callable[[], float], tolerance: float) -> None:
        self._read = read
        self._tolerance = tolerance
        # Of the clock of Redis to that of the process which is never set.
        self._offset: float | None = None
        self._doubt = 0.0
        self._failed = False

    def heard(self, server_time: float, sent_at: float, now: float) -> None:
        """Redis said what time it is, in an answer to what was sent at ``sent_at``."""
        self._offset = server_time - (sent_at + now) / 2
        self._doubt = (now - sent_at) / 2

    def server_time(self, now: float) -> float:
        """What time it is by the clock of Redis; by the own one before it has answered."""
        return self._read() if self._offset is None else now + self._offset

    def ahead(self, now: float) -> float:
        """By how many seconds the own clock is ahead; 0 before Redis has answered."""
        return 0.0 if self._offset is None else self._read() - now - self._offset

    def is_off(self, now: float) -> bool:
        """Whether the two differ by more than the tolerance."""
        return abs(self.ahead(now)) > self._tolerance + self._doubt

    # -- from the election's thread -----------------------------------------------

    def fails(self, now: float) -> bool:
        """As ``is_off``; once it was off, the two must differ by clearly less."""
        bound = self._tolerance * (_RIGHT_AGAIN if self._failed else 1.0) + self._doubt
        self._failed = abs(self.ahead(now)) > bound
        return self._failed

    def look_again_at(self, now: float) -> float:
        """When there can be something new to see."""
        return now + _LOOK

    def trouble(self, now: float) -> str:
        """Both times, and by how much they differ."""
        ahead = self.ahead(now)
        own, theirs = (_utc(each) for each in (self._read(), self.server_time(now)))
        which = "ahead of" if ahead > 0 else "behind"
        return f"its clock ({own}) is {abs(ahead):.0f} s {which} that of Redis ({theirs})"

    @property
    def cure(self) -> str:
        """What is to be done."""
        return (
            f"they differ by {self._tolerance:g} s (leader_beat_clock_tolerance) at most: set the"
            " wrong one right, and keep it so (NTP)"
        )


def _utc(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
