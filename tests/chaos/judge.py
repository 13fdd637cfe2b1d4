"""Judges what arrived: every tick once, in the name of who led, and no gap too long.

Pure: arrivals, windows and intervals in, a report out. Moments and intervals are whole
microseconds, so that the due times of an entry can be compared exactly.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.moments import time_of_day

_SECOND = 1_000_000
_ROUNDING = 1_000  # microseconds; what a due time that went through a float may be off
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message, as it was read from the queue."""

    entry: str
    tick: int
    term: int
    pid: int
    at: int
    #: The latest term that was elected when the queue had been read before.
    elected_before: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """The time from one fault to the next, and how long a gap in it may be, in seconds."""

    kind: str
    begins: int
    allowed: float
    #: Seconds for which this machine, and not what is tested, stood still.
    stalled: float = 0.0
    died: int = 0


@dataclass(slots=True)
class Row:
    """What came of all faults of one kind."""

    kind: str
    faults: int = 0
    dispatched: int = 0
    duplicates: int = 0
    missed: int = 0
    longest_gap: float = 0.0
    died: int = 0

    @property
    def due(self) -> int:
        """The ticks that fell due, dispatched or not."""
        return self.dispatched - self.duplicates + self.missed


@dataclass(slots=True)
class Report:
    """The rows in the order of the kinds' first faults, and what must not have been."""

    rows: list[Row]
    duplicates: int = 0
    missed: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def total(self) -> Row:
        """All rows as one."""
        total = Row("all")
        for row in self.rows:
            total.faults += row.faults
            total.dispatched += row.dispatched
            total.duplicates += row.duplicates
            total.missed += row.missed
            total.died += row.died
            total.longest_gap = max(total.longest_gap, row.longest_gap)
        return total


class Judge:
    """Reads arrivals against the schedule they must follow.

    Args:
        intervals: microseconds from one tick of each entry to the next.
        catch_up: what ``leader_beat_catch_up`` was, "all" or "one".
        windows: in order of time; the first begins before anything arrived.
    """

    def __init__(self, intervals: dict[str, int], catch_up: str, windows: Sequence[Window]) -> None:
        self._intervals = intervals
        self._next_tick_fits = {"all": self._follows_in_full, "one": self._follows_once}[catch_up]
        self._windows = windows
        self._begins = [window.begins for window in windows]
        kinds = dict.fromkeys(window.kind for window in windows)
        self._rows = {kind: Row(kind) for kind in kinds}
        self._found: dict[str, list[str]] = defaultdict(list)

    def report(self, arrivals: Sequence[Arrival], elections: dict[int, str], until: int) -> Report:
        """What came of it.

        Args:
            arrivals: in the order of the queue.
            elections: node by term.
            until: every tick that was due at this moment must have arrived.
        """
        for window in self._windows:
            row = self._rows[window.kind]
            row.faults += 1
            row.died += window.died
        self._read_entries(arrivals, until)
        self._read_terms(arrivals, elections)
        self._read_gaps(arrivals, until)
        report = Report(list(self._rows.values()))
        report.duplicates, report.missed = report.total.duplicates, report.total.missed
        for what, cases in self._found.items():
            shown = "; ".join(cases[:_EXAMPLES])
            more = f"; and {len(cases) - _EXAMPLES} more" if len(cases) > _EXAMPLES else ""
            report.violations.append(f"{len(cases)} x {what}: {shown}{more}")
        if report.total.died:
            report.violations.append(f"{report.total.died} process(es) died by themselves")
        return report

    # -- every tick once --------------------------------------------------------

    def _read_entries(self, arrivals: Sequence[Arrival], until: int) -> None:
        of_entry: dict[str, list[Arrival]] = defaultdict(list)
        for arrival in arrivals:
            of_entry[arrival.entry].append(arrival)
        for name in self._intervals:
            self._read_entry(name, of_entry[name], until)
        for stranger in of_entry.keys() - self._intervals.keys():
            self._note("entry of nobody's schedule", stranger)

    def _read_entry(self, name: str, arrivals: Sequence[Arrival], until: int) -> None:
        if not arrivals:
            self._note("entry that was never sent", name)
            return
        seen: dict[int, Arrival] = {}
        for arrival in arrivals:
            row = self._row_at(arrival.tick)
            row.dispatched += 1
            if arrival.tick in seen:
                row.duplicates += 1
                first = seen[arrival.tick]
                self._note(
                    "tick sent twice",
                    f"{name} due {time_of_day(arrival.tick)} at {time_of_day(first.at)} with term"
                    f" {first.term} and at {time_of_day(arrival.at)} with term {arrival.term}",
                )
            elif seen and arrival.tick < max(seen):
                self._note("tick sent after a later one", f"{name} due {time_of_day(arrival.tick)}")
            seen.setdefault(arrival.tick, arrival)
        ticks = sorted(seen)
        for tick, following in itertools.pairwise(ticks):
            self._next_tick_fits(name, seen[tick], following)
        self._next_tick_is_not_due(name, seen[ticks[-1]], until)

    def _follows_in_full(self, name: str, arrival: Arrival, following: int) -> None:
        """With "all", ticks are exactly one interval apart."""
        every = self._intervals[name]
        missed, off = divmod(following - arrival.tick, every)
        for i in range(1, missed if not off else missed + 1):
            self._missed(name, arrival.tick + i * every)
        if off:
            self._note(
                "tick off its grid",
                f"{name} {time_of_day(arrival.tick)} then {time_of_day(following)}",
            )

    def _follows_once(self, name: str, arrival: Arrival, following: int) -> None:
        """With "one", a tick is due one interval after the last was sent, however late that was."""
        every = self._intervals[name]
        if following < arrival.tick + every - _ROUNDING:
            self._row_at(following).duplicates += 1
            self._note(
                "second tick within one interval",
                f"{name} {time_of_day(arrival.tick)} and {time_of_day(following)}",
            )
        expected = arrival.at + every + _ROUNDING
        while following > expected:
            self._missed(name, expected)
            expected += every

    def _next_tick_is_not_due(self, name: str, last: Arrival, until: int) -> None:
        every = self._intervals[name]
        expected = max(last.tick, last.at if self._next_tick_fits == self._follows_once else 0)
        while expected + every <= until:
            expected += every
            self._missed(name, expected)

    def _missed(self, name: str, tick: int) -> None:
        self._row_at(tick).missed += 1
        self._note("tick missed", f"{name} due {time_of_day(tick)}")

    # -- in the name of who led ---------------------------------------------------

    def _read_terms(self, arrivals: Iterable[Arrival], elections: dict[int, str]) -> None:
        highest = 0
        for arrival in arrivals:
            what = f"{arrival.entry} at {time_of_day(arrival.at)} with term {arrival.term}"
            if arrival.term < highest:
                self._note("message with a lower term after a higher", f"{what}, not {highest}")
            elif arrival.term < arrival.elected_before:
                self._note(
                    "message of a leader whose successor was elected",
                    f"{what}, not {arrival.elected_before}",
                )
            highest = max(highest, arrival.term)
            node = elections.get(arrival.term)
            if node is None:
                self._note("message with a term nobody was elected for", what)
            elif not node.endswith(f":{arrival.pid}"):
                self._note("message of another than who was elected", f"{what}, {node}")

    # -- no gap too long -----------------------------------------------------------

    def _read_gaps(self, arrivals: Sequence[Arrival], until: int) -> None:
        moments = [arrival.at for arrival in arrivals]
        moments.append(max([until, *moments]))
        for before, after in itertools.pairwise(moments):
            self._read_gap(before, after)

    def _read_gap(self, before: int, after: int) -> None:
        first, last = self._window_at(before), self._window_at(after)
        # It counts with the first fault that fell into it.
        window = self._windows[min(first + 1, last)]
        seconds = (after - before) / _SECOND
        row = self._rows[window.kind]
        row.longest_gap = max(row.longest_gap, seconds)
        touched = self._windows[first : last + 1]
        allowed = max(each.allowed for each in touched)
        stalled = sum(each.stalled for each in touched)
        if seconds > allowed + stalled:
            self._note(
                "gap too long",
                f"{seconds:.2f} s after {window.kind} at {time_of_day(window.begins)},"
                f" allowed {allowed:.2f} s + {stalled:.2f} s",
            )

    # -- small parts -----------------------------------------------------------------

    def _window_at(self, moment: int) -> int:
        return max(0, bisect.bisect_right(self._begins, moment) - 1)

    def _row_at(self, moment: int) -> Row:
        return self._rows[self._windows[self._window_at(moment)].kind]

    def _note(self, what: str, case: str) -> None:
        self._found[what].append(case)
