"""The judge of the chaos run sees each thing it is there to see, and nothing in a clean run."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from tests.chaos.drainer import Trap
from tests.chaos.faults import KINDS, schedule
from tests.chaos.judge import Arrival, Judge, Report, Window

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
INTERVALS = {"a": SECOND, "b": SECOND}
NODES = {7: "beat@host:100", 9: "beat@host:200"}
LATE = 3_000  # microseconds from due to arrived


def arrival(entry: str, tick: float, term: int = 7, pid: int = 100, at: float | None = None):
    due = START + round(tick * SECOND)
    arrived = due + LATE if at is None else START + round(at * SECOND)
    return Arrival(entry, due, term, pid, arrived)


def clean(seconds: int = 10) -> list[Arrival]:
    ticks = itertools.product(range(seconds), INTERVALS)
    return [arrival(entry, tick + 0.1 * (entry == "b")) for tick, entry in ticks]


def judged(
    arrivals: list[Arrival],
    catch_up: str = "all",
    until: float = 9.5,
    allowed: float = 5.0,
    **window: float,
) -> Report:
    windows = [
        Window("calm", 0, 1.0),
        Window("fault", START + 2 * SECOND, allowed, **window),  # type: ignore[arg-type]
    ]
    judge = Judge(INTERVALS, catch_up, windows)
    return judge.report(arrivals, NODES, START + round(until * SECOND))


def row(report: Report, kind: str):
    return next(row for row in report.rows if row.kind == kind)


@pytest.mark.parametrize("catch_up", ["all", "one"])
def test_finds_nothing_where_every_tick_came_once(catch_up):
    report = judged(clean(), catch_up)
    assert report.violations == []
    assert (report.total.due, report.total.dispatched) == (20, 20)


@pytest.mark.parametrize("catch_up", ["all", "one"])
def test_sees_a_tick_that_came_twice_and_counts_it_with_the_fault_it_fell_into(catch_up):
    arrivals = clean()
    arrivals.insert(9, arrivals[8])
    report = judged(arrivals, catch_up)
    assert (row(report, "calm").duplicates, row(report, "fault").duplicates) == (0, 1)
    assert "tick sent twice: a due" in report.violations[0]


@pytest.mark.parametrize("catch_up", ["all", "one"])
def test_sees_a_tick_that_never_came(catch_up):
    arrivals = clean()
    del arrivals[8]
    report = judged(arrivals, catch_up)
    assert row(report, "fault").missed == 1
    assert row(report, "fault").due == row(report, "fault").dispatched + 1


@pytest.mark.parametrize("catch_up", ["all", "one"])
def test_sees_an_entry_that_is_not_sent_any_more(catch_up):
    report = judged([a for a in clean() if a.entry == "b" or a.tick < START + 5 * SECOND], catch_up)
    assert report.missed == 5


def test_sees_an_entry_that_was_never_sent():
    report = judged([a for a in clean() if a.entry == "a"])
    assert "never sent: b" in report.violations[0]


def test_with_one_a_tick_sent_late_is_the_only_one_of_its_gap():
    late = [arrival("a", 0), arrival("b", 0), arrival("a", 1, at=4.5), arrival("b", 1, at=4.6)]
    late += [arrival("a", 5.49), arrival("b", 5.59)]
    assert judged(late, "one", until=6).violations == []
    assert judged(late, "all", until=6).missed == 8  # and with "all" it is not enough


def test_with_one_a_second_tick_in_the_gap_is_a_duplicate():
    late = [arrival("a", 0), arrival("b", 0), arrival("a", 1, at=4.5), arrival("b", 1, at=4.6)]
    late += [arrival("a", 1.5, at=4.7), arrival("a", 5.7), arrival("b", 5.59)]
    assert judged(late, "one", until=6).duplicates == 1


def test_with_all_ticks_sent_late_are_all_there():
    late = [arrival("a", 0), arrival("b", 0)]
    late += [arrival(e, t, at=4.5) for t in range(1, 5) for e in "ab"]
    assert judged(late, "all", until=4.9).violations == []


def test_sees_a_tick_off_its_grid():
    arrivals = [a if i != 8 else arrival("a", 4.2) for i, a in enumerate(clean())]
    assert any("off its grid" in violation for violation in judged(arrivals).violations)


def test_sees_a_lower_term_after_a_higher():
    arrivals = clean()
    arrivals[10:12] = [dataclasses.replace(a, term=9, pid=200) for a in arrivals[10:12]]
    assert any("lower term after a higher" in v for v in judged(arrivals).violations)


def test_sees_a_message_pushed_after_a_later_election():
    arrivals = clean()
    arrivals[10] = dataclasses.replace(arrivals[10], elected_before=9)
    assert any("successor was elected" in v for v in judged(arrivals).violations)


def test_sees_a_message_of_a_process_that_was_not_elected():
    arrivals = clean()
    arrivals[10] = dataclasses.replace(arrivals[10], pid=300)
    assert any("another than who was elected" in v for v in judged(arrivals).violations)


def test_sees_a_gap_that_is_too_long_but_not_where_the_machine_stood_still():
    late = [arrival("a", 0), arrival("b", 0)]
    late += [arrival(e, t, at=4.5) for t in range(1, 5) for e in "ab"]
    assert any("gap too long" in v for v in judged(late, until=4.9, allowed=3.0).violations)
    assert judged(late, until=4.9, allowed=3.0, stalled=2.0).violations == []


def test_a_gap_without_end_is_seen_and_counts_with_the_fault_it_began_with():
    report = judged(clean(3), until=60)
    assert row(report, "fault").longest_gap > 50
    assert any("gap too long" in violation for violation in report.violations)


def test_sees_a_process_that_died_by_itself():
    assert judged(clean(), died=1).violations == ["1 process(es) died by themselves"]


def test_the_same_seed_gives_the_same_faults_and_another_seed_others():
    first, again, other = (
        list(itertools.islice(schedule(seed), 2 * len(KINDS))) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other
    assert {fault.kind for fault in first[: len(KINDS)]} == set(KINDS)


def test_a_trap_springs_once_in_the_middle_of_a_burst():
    sprung: list[Arrival] = []
    trap = Trap(START, 3, sprung.append)
    for number in range(5):
        before, now = (arrival(f"burst-{number:03}", tick) for tick in (-1, 1))
        trap.see([arrival("steady-001", 1), before])
        trap.see([now])
        assert len(sprung) == (number >= 2)
    assert (trap.seen_when_fired, trap.first_due) == (3, START + SECOND)
