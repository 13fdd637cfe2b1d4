"""The demo's judge finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace

from examples.demo.evidence import Entry, Event, Evidence, Run
from examples.demo.judge import Report, judge

TERM = 7
START = 1_700_000_000


@dataclass
class Demo:
    """A demo in which all went well, until a test changes it."""

    ticks: list[float] = field(default_factory=lambda: [START + float(n) for n in range(10)])
    sequence: int = 11
    cut_short: str = ""
    runs: list[Run] = field(default_factory=list)
    workers: list[Event] = field(
        default_factory=lambda: [
            Event(_ms(START - 5), "elected", "w1", 1),
            Event(_ms(START + 7), "elected", "w2", 2),
        ]
    )
    beats: list[Event] = field(
        default_factory=lambda: [
            Event(_ms(START - 2), "elected", "b1", TERM),
            Event(_ms(START + 3.2), "resigned", "b1", TERM),
            Event(_ms(START + 3.21), "elected", "b2", TERM + 1),
        ]
    )

    def __post_init__(self) -> None:
        self.runs = self.runs or [
            self.started(
                tick, "w1" if tick < START + 3 else "w2", at=tick if tick < START + 3 else tick + 5
            )
            for tick in self.ticks
        ]

    @property
    def finished(self) -> list[Run]:
        """The runs that came to their end."""
        return [run for run in self.runs if run.id != self.cut_short]

    def started(self, tick: float, node: str, *, at: float | None = None) -> Run:
        """The start of a leader-only body."""
        return Run(
            at=_ms(tick if at is None else at),
            event="started",
            task="proj.on_leader",
            id=f"task-{tick}",
            tick=_iso(tick),
            term=TERM,
            node=node,
        )

    def judged(self, until: float | None = None) -> Report:
        evidence = Evidence(
            now=0,
            runs=(*self.runs, *(replace(run, event="done") for run in self.finished)),
            history={"worker": tuple(self.workers), "beat": tuple(self.beats)},
            records={"worker": {"lease": "5000"}, "beat": {}},
            candidates={},
            schedule={"on-leader": Entry(self.sequence, _iso(START + 10))},
            waiting=0,
            unacknowledged=0,
        )
        due = {number: _iso(tick) for number, tick in enumerate(self.ticks, 1)}
        return judge(
            evidence,
            {"on-leader": due},
            {"on-leader": "proj.on_leader"},
            leader_only="proj.on_leader",
            interval=1.0,
            killed_at=_ms(START + 3),
            beats_told_at=until or self.ticks[-1] + 0.5,
        )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _iso(seconds: float) -> str:
    at = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return at.isoformat(timespec="microseconds")


def test_a_demo_in_which_all_went_well_is_good():
    report = Demo().judged()

    assert report.broken == []
    assert (report.ticks_due, report.ticks_dispatched, report.leader_only_runs) == (10, 10, 10)
    assert (report.handover_ms, report.failover_ms) == (10, 4000)
    assert report.lease_duration == 5.0


def test_two_messages_for_one_tick_are_a_duplicate():
    demo = Demo()
    demo.runs.append(replace(demo.runs[-1], id="another"))

    assert demo.judged().duplicates == 1


def test_the_same_message_delivered_twice_is_no_duplicate():
    demo = Demo()
    demo.runs.append(demo.runs[-1])

    report = demo.judged()

    assert report.broken == []
    assert report.redelivered_runs == 1


def test_a_tick_that_nobody_claimed_is_a_duplicate():
    demo = Demo(sequence=10)

    assert demo.judged().duplicates == 1


def test_ticks_of_two_beats_that_dispatch_side_by_side_are_duplicates():
    demo = Demo()
    demo.runs.append(demo.started(START + 5.3, "w2", at=START + 9))

    assert demo.judged().duplicates >= 1


def test_an_interval_without_a_tick_is_missed():
    ticks = [START + float(n) for n in range(10) if n != 6]

    report = Demo(ticks, sequence=10).judged()

    assert report.missed == 1
    assert report.ticks_due == report.ticks_dispatched + 1


def test_ticks_that_stop_before_the_beats_do_are_missed():
    assert Demo().judged(until=START + 9 + 4.5).missed == 3


def test_a_late_tick_is_not_missed():
    ticks = [START + n + (0.7 if n > 5 else 0) for n in range(10)]

    report = Demo(ticks).judged()

    assert report.missed == 0
    assert report.longest_gap_ms == 1700


def test_a_tick_that_was_dispatched_and_never_ran_is_lost():
    demo = Demo()
    del demo.runs[4]

    report = demo.judged()

    assert report.lost == 1
    assert report.missed == 0


def test_a_task_that_was_cut_short_and_never_came_back_is_lost():
    demo = Demo()
    demo.cut_short = demo.runs[4].id

    assert demo.judged().broken == ["lost"]


def test_a_leader_only_run_elsewhere_is_a_followers():
    demo = Demo()
    demo.runs[1] = replace(demo.runs[1], node="w3")

    assert demo.judged().follower_runs == 1


def test_a_leader_only_run_before_the_election_or_after_the_resignation_is_a_followers():
    demo = Demo()
    demo.workers[0] = Event(_ms(START + 0.5), "elected", "w1", 1)
    demo.workers.insert(1, Event(_ms(START + 1.5), "resigned", "w1", 1))

    assert demo.judged().follower_runs == 2


def test_nobody_taking_over_is_not_as_promised():
    demo = Demo()
    del demo.workers[1], demo.beats[2]

    assert demo.judged().broken[-2:] == ["handover_ms", "failover_ms"]
