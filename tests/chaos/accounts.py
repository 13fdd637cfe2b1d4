"""Judges what became of every task id that was sent. Pure: records in, a report out.

A start is right if, by the election's record at that same moment of Redis, its node held
the lease. A start after another was elected is no violation if its process had been
stopped, by us or by the machine, between the guard's look and the body's first act: no
system with pauses can promise more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.moments import time_of_day

_EXAMPLES = 5
_BEFORE_NOTED = 20_000  # microseconds from the guard's look until that was noted
_AT_WORK = 1_000_000  # microseconds from a body's start until its task is surely done with
_SLOW = 100_000  # microseconds from there to the first act; more, and it was not running


@dataclass(frozen=True, slots=True)
class Sent:
    """One task or canvas: the way it was sent and all its ids."""

    way: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """A body that started, and the election's record at that moment of Redis.

    Moments are microseconds, and ``expires_at`` too.
    """

    id: str
    node: str
    attempt: int
    checked: int
    at: int
    holder: str
    term: int
    held: bool
    expires_at: int

    @property
    def on_leader(self) -> bool:
        """Whether Redis says that its node led."""
        return self.held and self.holder == self.node and self.at < self.expires_at


@dataclass(frozen=True, slots=True)
class Frozen:
    """A node that could not run between two moments."""

    node: str
    begins: int
    ends: int


@dataclass(frozen=True, slots=True)
class Killed:
    """A node that lost a pool process, and the moment, in microseconds."""

    node: str
    at: int


@dataclass(slots=True)
class Trace:
    """How often the message of one id was put into a queue and taken in hand, and its end."""

    queued: int = 0
    taken: int = 0
    queued_at: int = 0  # microseconds, for the last time
    for_leader: bool = False  # whether the last queue was the leader's
    in_hand: bool = False  # whether it was taken last, and not put into a queue
    acknowledged: bool = False  # whether it was let go when it was in hand

    @property
    def lost_on_its_way(self) -> bool:
        """Whether the broker gave it to a connection at whose other end nobody took it.

        That is BRPOP: Redis forgets the message when it writes the reply, and plain Celery
        loses it the same way. The leader queue is not read by BRPOP: nothing excuses what it
        loses.
        """
        return self.queued > self.taken and not self.for_leader


@dataclass(slots=True)
class Row:
    """What became of all that was sent one way."""

    way: str
    sent: int = 0
    ran: int = 0
    twice: int = 0
    skipped: int = 0
    gone_early: int = 0
    lost_by_celery: int = 0
    unfinished: int = 0


@dataclass(slots=True)
class Report:
    """A row for each way, and what must not have been."""

    rows: list[Row]
    starts: int = 0
    on_followers: int = 0
    excused: int = 0
    #: What plain Celery loses the same way, and how.
    lost: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Accounts:
    """Everything that is known at the end.

    Args:
        starts: in the order of Redis.
        ended: ids whose body was done at least once.
        states: by id, Celery's own state of it, where it has one.
        traces: by id, what became of its message.
        frozen: who could not run, and when.
        killed: whose pool process was killed, and when.
    """

    def __init__(
        self,
        starts: Sequence[Start],
        ended: Iterable[str],
        states: Mapping[str, str],
        traces: Mapping[str, Trace],
        frozen: Sequence[Frozen],
        killed: Sequence[Killed],
    ) -> None:
        self._starts = starts
        self._ended = set(ended)
        self._states = states
        self._traces = traces
        self._frozen = frozen
        self._killed = killed
        self._found: dict[str, list[str]] = defaultdict(list)
        self._lost: list[str] = []

    def report(self, sent: Iterable[Sent]) -> Report:
        """What came of all that was ``sent``, and where it had started."""
        report = self.of_ids(sent)
        self.judge_starts(report)
        return report

    def of_ids(self, sent: Iterable[Sent]) -> Report:
        """What came of all that was ``sent``, wherever it had started."""
        rows: dict[str, Row] = {}
        per_attempt = Counter((start.id, start.attempt) for start in self._starts)
        twice = {task_id for (task_id, _), count in per_attempt.items() if count > 1}
        for unit in sent:
            row = rows.setdefault(unit.way, Row(unit.way))
            row.sent += len(unit.ids)
            row.ran += len(self._ended.intersection(unit.ids))
            row.twice += len(twice.intersection(unit.ids))
            self._account_for_rest(unit, row)
        report = Report(list(rows.values()), starts=len(self._starts))
        report.lost = self._lost
        self._tell(report)
        return report

    def _tell(self, report: Report) -> None:
        for what, cases in self._found.items():
            report.violations.append(f"{len(cases)} x {what}: " + "; ".join(cases[:_EXAMPLES]))
        self._found.clear()

    def _account_for_rest(self, unit: Sent, row: Row) -> None:
        rest = [task_id for task_id in unit.ids if task_id not in self._ended]
        open_ = []
        for task_id in rest:
            if self._states.get(task_id) != "REVOKED":
                open_.append(task_id)
            elif unit.way == "skip":
                row.skipped += 1
            else:
                row.unfinished += 1
                self._found["skipped though not asked to"].append(f"{unit.way} {task_id}")
        if unit.way == "early ack":
            # Acknowledged as it began, and then its worker was killed: gone, as with Celery.
            gone = [task_id for task_id in open_ if self._acknowledged(task_id)]
            row.gone_early += len(gone)
            open_ = [task_id for task_id in open_ if task_id not in gone]
        lost = [task_id for task_id in open_ if self._lost_on_its_way(task_id)]
        never_sent = [task_id for task_id in open_ if task_id not in self._traces]
        row.lost_by_celery += len(lost)
        self._lost += [
            f"by BRPOP: {unit.way} {task_id}, queued at {time_of_day(self._traces[task_id].queued_at)}"
            for task_id in lost
        ]
        if not lost and self._chord_was_given_up(unit, open_):
            row.lost_by_celery += 1
            self._lost.append(f"by a chord's claim: {unit.ids[-1]}, its header is done")
            return
        for task_id in open_:
            if task_id in lost:
                continue
            row.unfinished += 1
            # What was to come after a lost one is as lost, also where its body had ended once.
            if not (task_id in never_sent and any(map(self._lost_on_its_way, unit.ids))):
                fates = ", ".join(f"{each}: {self._fate(each)}" for each in unit.ids)
                self._found["unfinished"].append(f"{unit.way} {task_id} of {fates}")

    def _lost_on_its_way(self, task_id: str) -> bool:
        trace = self._traces.get(task_id)
        return trace is not None and trace.lost_on_its_way

    def _acknowledged(self, task_id: str) -> bool:
        trace = self._traces.get(task_id)
        return trace is not None and trace.acknowledged

    def _chord_was_given_up(self, unit: Sent, open_: Sequence[str]) -> bool:
        """Whether a header task was killed when it was to be counted, or to call the body.

        Celery's claim to the call outlives it for some seconds, so a second run leaves the
        call to the first. There is none if the success was stored already: then Celery takes
        the task for done, though nothing has counted it.
        """
        *header, body = unit.ids
        return (
            unit.way == "chord"
            and list(open_) == [body]
            and body not in self._traces
            and all(self._states.get(task_id) == "SUCCESS" for task_id in header)
            and any(map(self._ended_before_its_time, header))
        )

    def _ended_before_its_time(self, task_id: str) -> bool:
        starts = [start for start in self._starts if start.id == task_id]
        return len(starts) > 1 or any(
            start.node == killed.node and 0 <= killed.at - start.at < _AT_WORK
            for start in starts
            for killed in self._killed
        )

    def _fate(self, task_id: str) -> str:
        trace = self._traces.get(task_id)
        state = self._states.get(task_id, "no state")
        if trace is None:
            return f"never in a queue, {state}"
        starts = sum(start.id == task_id for start in self._starts)
        return f"queued {trace.queued} and taken {trace.taken} times, started {starts}, {state}"

    def judge_starts(self, report: Report) -> None:
        """Add to ``report`` which bodies had started on a follower."""
        for start in self._starts:
            if start.on_leader:
                continue
            if self._was_frozen(start):
                report.excused += 1
                continue
            report.on_followers += 1
            whose = f"{start.holder or 'nobody'} with term {start.term}"
            if not start.held or start.at >= start.expires_at:
                whose = f"nobody, after {whose}"
            self._found["started on a follower"].append(
                f"{start.id} on {start.node} at {time_of_day(start.at)},"
                f" {(start.at - start.checked) / 1000:.1f} ms after its check, while {whose} led"
            )
        self._tell(report)

    def _was_frozen(self, start: Start) -> bool:
        looked = start.checked - _BEFORE_NOTED
        return start.at - start.checked > _SLOW or any(
            pause.node == start.node and pause.begins <= start.at and looked <= pause.ends
            for pause in self._frozen
        )
