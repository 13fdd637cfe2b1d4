"""What one candidate has seen of an election's lease, by its own clock.

A candidate takes another's lease only if its own clock has seen that lease run out. The store's
word alone is not enough, because the store's clock is a wall clock and can be set. No thread,
clock or socket: moments come in as arguments.
"""

from __future__ import annotations

from .lease import Announcement, Record, State, cursor_order, latest_term
from .observed_leader import ObservedLeader
from .timing import Timing


class ObservedLease:
    """The lease of one election, as one candidate has seen it.

    Args:
        timing: the election's durations.

    Attributes:
        leader: who leads, as far as was heard.
        cursor: the last line of history that was heard.
        seen_term: the highest term that was seen.
        longest_lease: the longest lease that was seen; 0 before the first.
    """

    def __init__(self, timing: Timing) -> None:
        self.leader = ObservedLeader()
        self.cursor = "0-0"
        self.seen_term = 0
        self.longest_lease = 0.0
        self._timing = timing
        self._missing_since: float | None = None
        self._watched: tuple[int, int] | None = None
        self._run_out_at = 0.0
        self._silent_at = 0.0
        self._clock_offset: float | None = None

    # -- the lease of another ------------------------------------------------------

    def run_out(self, now: float) -> tuple[int, int] | None:
        """The ``(term, renewals)`` whose lease has run out by our clock, if there is one."""
        return self._watched if now >= self._run_out_at else None

    def is_silent(self, now: float) -> bool:
        """Whether the lease has not been renewed for a whole lease by our clock."""
        return self._watched is not None and now >= self._silent_at

    def watch(self, record: Record, now: float, clock_gained: float) -> float:
        """The store shows another's lease; returns when it can be free.

        ``clock_gained``: how far the store's clock may have run ahead of ours since the last look.
        """
        self.saw(record.term, record.lease_duration)
        self._missing_since = None
        state = (record.term, record.renewals)
        if state != self._watched:
            # Older than the state that we have seen: an old copy, whose holder renewed since.
            old_copy = self._watched is not None and state < self._watched
            remaining = record.lease_duration if old_copy else record.remaining + clock_gained
            self._watched = state
            self._run_out_at = now + min(max(remaining, 0.0), record.lease_duration)
            self._silent_at = now + record.lease_duration
            return self._run_out_at
        # Either the lease has run out by our clock and not yet by the store's, or we asked
        # early. The lease is not free before both clocks agree.
        over_at = min(now + max(record.remaining, 0.001), max(self._silent_at, now))
        return max(over_at, self._run_out_at) if record.state is State.TAKEN else over_at

    def saw(self, term: int, lease_duration: float) -> None:
        """A record of this term and this lease was there."""
        self.seen_term = max(self.seen_term, term)
        self.longest_lease = max(self.longest_lease, lease_duration)

    def granted(self, term: int, lease_duration: float, now: float) -> None:
        """The lease is ours."""
        self.saw(term, lease_duration)
        self.see_lease_run_out(now)
        self._missing_since = None
        self._watched = None

    # -- a record that is missing --------------------------------------------------

    @property
    def missing_record_wait(self) -> float:
        """How long a record must be missing before this candidate makes one.

        A record that was there and is gone proves nothing, because its holder may still believe
        in its lease. So the wait is the longest lease that was seen, or ``bootstrap_delay`` if
        none was.
        """
        return self.longest_lease or self._timing.bootstrap_delay

    @property
    def is_missing(self) -> bool:
        """Whether the record was missing at the last look."""
        return self._missing_since is not None

    def found_missing(self, now: float) -> float:
        """The record is not there; returns when this candidate may make one."""
        self._watched = None
        self.leader.nobody(now)
        self._missing_since = self._missing_from(now)
        return self._may_make_record_at(now)

    def may_make_record(self, now: float) -> bool:
        """Whether the record has been missing for so long that this candidate may make one."""
        return now >= self._may_make_record_at(now)

    def begin_wait_anew(self) -> None:
        """Count the time for which the record is missing from the next look on."""
        self._missing_since = None

    def _may_make_record_at(self, now: float) -> float:
        return self._missing_from(now) + self.missing_record_wait

    def _missing_from(self, now: float) -> float:
        """Since when the record is known to be missing; ``now`` if nobody looked lately.

        A candidate that was paused or cut off may have missed a whole leadership.
        """
        since = self._missing_since
        return now if since is None or now > since + 2 * self.missing_record_wait else since

    # -- the store's clock, and what it makes impossible ---------------------------

    def clock_gained(self, server_time: float, now: float) -> float:
        """How far the store's clock may have run ahead of ours since the last look at it.

        A lease renewed in between may run longer than the store says by that much. If the clock
        was set back, it may have been set forward too, and nobody knows how far: infinity.
        """
        offset = server_time - now
        before, self._clock_offset = self._clock_offset, offset
        moved = 0.0 if before is None else offset - before
        return max(moved, 0.0) if moved >= -self._timing.margin else float("inf")

    def forget_impossible_terms(self, server_time: float) -> None:
        """Forget terms that were seen while the store's clock was far ahead."""
        latest = latest_term(server_time)
        if self.seen_term > latest:
            self.seen_term = 0
        if self.leader.term > latest:
            self.leader.term = 0

    def move_cursor(self, cursor: str, server_time: float) -> None:
        """An answer tells of everything that was announced before ``cursor``."""
        if cursor_order(self.cursor)[0] > 1000 * (server_time + 1):
            # Our cursor is a line of the future: for years no news might come after it.
            self.cursor = cursor
        else:
            self.cursor = max(self.cursor, cursor, key=cursor_order)

    # -- who leads -----------------------------------------------------------------

    def see_lease_run_out(self, now: float) -> None:
        """Nobody is known to lead once the watched lease has run out by our clock."""
        if self._watched is not None and now >= self._run_out_at:
            self.leader.nobody(self._run_out_at)

    def see_leader(self, record: Record, now: float) -> bool:
        """Learn from a record who leads; returns whether that is a new leadership."""
        self.see_lease_run_out(now)
        if record.led:
            return self.leader.leads(record.holder, record.term, now)
        self.leader.nobody(now)
        return False

    def hear_of_leader(self, news: Announcement, now: float) -> bool:
        """Learn from an announcement who leads; returns whether that is a new leadership."""
        if news.term < self.leader.term:
            return False  # older than what is known
        if news.kind == "elected":
            self.see_lease_run_out(now)
            return self.leader.leads(news.node, news.term, now)
        if news.kind in ("resigned", "reserved"):
            self.leader.nobody(now)
        return False

    def is_possible(self, news: Announcement, now: float) -> bool:
        """Whether a candidate can have written this announcement by now."""
        if self._clock_offset is None:
            return True
        latest = latest_term(now + self._clock_offset)
        return max(news.term, 1000 * cursor_order(news.cursor)[0]) <= latest
