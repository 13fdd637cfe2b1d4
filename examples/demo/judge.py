"""The verdict on one demo, from what Redis holds of it.

``ticks_due``: the due times of every entry, holes included. An entry's next tick is due
one interval after the last was dispatched, so a late one moves those after it; ``missed``
counts the whole intervals that went by without one.

``ticks_dispatched``: by the sequence numbers in the schedule's state. ``duplicates``: dispatches
beyond one per tick. A task that was delivered again after its worker was killed keeps its id
and is no duplicate. ``lost``: ticks that were dispatched and whose task was never done.

``follower_runs``: bodies of leader-only tasks that started on a node while the history of the
election has another one leading, or none.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .evidence import Event, Evidence, Run, seconds


@dataclass(frozen=True, slots=True)
class Report:
    """What ``demo-report.json`` holds."""

    ticks_due: int
    ticks_dispatched: int
    duplicates: int
    missed: int
    leader_only_runs: int
    follower_runs: int
    lost: int
    handover_ms: int | None
    failover_ms: int | None
    lease_duration: float
    redelivered_runs: int
    longest_gap_ms: int

    @property
    def broken(self) -> list[str]:
        """The names of the figures that are not as promised."""
        counts = ("duplicates", "missed", "follower_runs", "lost")
        times = ("handover_ms", "failover_ms")
        return [
            *(name for name in counts if getattr(self, name)),
            *(name for name in times if getattr(self, name) is None),
        ]


@dataclass(frozen=True, slots=True)
class Chain:
    """The ticks of one entry."""

    due: tuple[float, ...]
    dispatched: int
    messages: int  # different task ids
    ran: int  # different ticks
    done: int  # different ticks

    @property
    def gaps(self) -> list[float]:
        return [later - sooner for sooner, later in itertools.pairwise(self.due)]

    def missed(self, interval: float, until: float) -> int:
        """Whole intervals without a tick, up to when the beats were told to stop."""
        gaps = [*self.gaps, until - self.due[-1]] if self.due else [until]
        return sum(max(0, int(gap / interval) - 1) for gap in gaps)

    def duplicates(self, interval: float) -> int:
        """Messages beyond one per tick, ticks beyond those claimed, ticks that crowd."""
        crowded = sum(gap < interval / 2 for gap in self.gaps)
        return self.messages - self.ran + max(0, self.ran - self.dispatched) + crowded


def judge(
    evidence: Evidence,
    due: Mapping[str, Mapping[int, str]],
    tasks: Mapping[str, str],
    *,
    leader_only: str,
    interval: float,
    killed_at: int,
    beats_told_at: float,
) -> Report:
    """The report on a demo that is over.

    Args:
        evidence: what Redis holds in the end.
        due: for each entry, by sequence number, when the tick was due.
        tasks: the task of each entry.
        leader_only: the task that is for the leader only.
        interval: seconds between two ticks of an entry.
        killed_at: when the leading worker was killed, in ms by the server's clock.
        beats_told_at: when the beats were told to stop, in seconds by theirs.
    """
    started = evidence.started()
    chains = [
        _chain(evidence, entry, due[entry], [run for run in started if run.task == task])
        for entry, task in tasks.items()
    ]
    missed = sum(chain.missed(interval, beats_told_at) for chain in chains)
    leaders_work = [run for run in started if run.task == leader_only]
    workers, beats = evidence.history["worker"], evidence.history["beat"]
    resigned_at = next((event.at for event in beats if event.kind == "resigned"), None)
    return Report(
        ticks_due=sum(len(chain.due) for chain in chains) + missed,
        ticks_dispatched=sum(chain.dispatched for chain in chains),
        duplicates=sum(chain.duplicates(interval) for chain in chains),
        missed=missed,
        leader_only_runs=len(leaders_work),
        follower_runs=sum(not led(workers, run) for run in leaders_work),
        lost=sum(max(0, chain.dispatched - chain.done) for chain in chains),
        handover_ms=takeover_ms(beats, resigned_at),
        failover_ms=takeover_ms(workers, killed_at),
        lease_duration=int(evidence.records["worker"]["lease"]) / 1000,
        redelivered_runs=len(started) - len({run.id for run in started}),
        longest_gap_ms=round(1000 * max((max(c.gaps, default=0) for c in chains), default=0)),
    )


def _chain(evidence: Evidence, entry: str, due: Mapping[int, str], runs: Iterable[Run]) -> Chain:
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for run in runs:
        ids[run.tick].add(run.id)
    sequence = evidence.schedule[entry].sequence
    dispatched = {tick for number, tick in due.items() if number < sequence}
    return Chain(
        due=tuple(sorted(seconds(tick) for tick in dispatched | ids.keys() if tick)),
        dispatched=evidence.schedule[entry].dispatched,
        messages=sum(len(each) for each in ids.values()),
        ran=len(ids),
        done=sum(not each.isdisjoint(evidence.done()) for each in ids.values()),
    )


def led(history: Iterable[Event], run: Run) -> bool:
    """Whether the node of ``run`` was the leader when it started."""
    leading = None
    for event in history:
        if event.at > run.at:
            break
        if event.kind == "elected":
            leading = event.node
        elif event.at < run.at:  # within one millisecond nobody knows which was first
            leading = None
    return leading == run.node


def takeover_ms(history: Iterable[Event], since: int | None) -> int | None:
    """From ``since`` to the next election; ``None`` if there was none."""
    if since is None:
        return None
    elected = (event.at for event in history if event.kind == "elected" and event.at >= since)
    return next((at - since for at in elected), None)
