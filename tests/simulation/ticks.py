"""What may become of each entry's state, and of its ticks: a model that shares no code with beat.

It is told every change that Redis agreed to and every message. Each due time is told here from
the entry's schedule alone: an interval by addition, a crontab by trying the minutes of the
calendar on the wall.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from tests.support.fake_schedule import Written

UTC = timezone.utc
_EARLY = timedelta(seconds=1)  # a clock that went back by less is not taken for one that did


class Broken(AssertionError):
    """A promise of the schedule was broken."""


@dataclass(frozen=True, slots=True)
class Spec:
    """When an entry is due, and how it catches up."""

    kind: str  # every, relative or cron
    seconds: float = 0.0
    minutes: tuple[int, ...] = ()
    hours: tuple[int, ...] = tuple(range(24))
    mode: str = "one"

    def is_same_schedule(self, other: Spec) -> bool:
        """Whether they are due at the same times, however they catch up."""
        mine = (self.kind, self.seconds, self.minutes, self.hours)
        return mine == (other.kind, other.seconds, other.minutes, other.hours)

    def after(self, moment: datetime, zone: str, *, shifted: bool = True) -> datetime:
        """The first due time after ``moment``.

        ``shifted``: what the clocks pass over in spring comes as much later, and is not left out.
        """
        if self.kind == "cron":
            return _minute_after(self.minutes, self.hours, zone, moment, shifted)
        following = moment + timedelta(seconds=self.seconds)
        if self.kind == "every":
            return following
        # Relative: at the start of the day, hour, minute or second of the zone.
        local = following.astimezone(ZoneInfo(zone)).replace(microsecond=0)
        for unit, begin in ((86400, {"hour": 0}), (3600, {"minute": 0}), (60, {"second": 0})):
            if self.seconds >= unit:
                smaller = {"hour": 0, "minute": 0, "second": 0}
                names = list(smaller)[list(smaller).index(next(iter(begin))) :]
                local = local.replace(**dict.fromkeys(names, 0))
                break
        return local.astimezone(UTC)

    def missed(
        self, due: datetime, now: datetime, zone: str, *, shifted: bool = True
    ) -> list[datetime]:
        """The due times from ``due`` on until ``now``."""
        times = []
        while due <= now:
            times.append(due)
            due = self.after(due, zone, shifted=shifted)
        return times


@functools.lru_cache(maxsize=4096)
def _of_day(
    minutes: tuple[int, ...], hours: tuple[int, ...], zone: str, day: datetime, shifted: bool
) -> tuple[datetime, ...]:
    """Of one day on the wall; what is not on the clocks that day comes as much later."""
    wall = ZoneInfo(zone)
    local = (day.replace(hour=h, minute=m, tzinfo=wall) for h in hours for m in minutes)
    told = ((each, each.astimezone(UTC)) for each in local)
    return tuple(
        sorted(
            {
                true
                for each, true in told
                if shifted
                or (
                    true.astimezone(wall).hour == each.hour
                    and true.astimezone(wall).minute == each.minute
                )
            }
        )
    )


def _minute_after(
    minutes: tuple[int, ...], hours: tuple[int, ...], zone: str, moment: datetime, shifted: bool
) -> datetime:
    local = moment.astimezone(ZoneInfo(zone))
    day = datetime(local.year, local.month, local.day)
    for ahead in (-1, 0, 1, 2):
        times = _of_day(minutes, hours, zone, day + timedelta(days=ahead), shifted)
        place = bisect.bisect_right(times, moment)
        if place < len(times):
            return times[place]
    raise AssertionError("no minute of three days")


@dataclass(frozen=True, slots=True)
class Reign:
    """One term: who leads, what it knows, and by what clock."""

    beat: int
    specs: dict[str, Spec]
    offset: timedelta
    since: datetime  # by its own clock


@dataclass(frozen=True, slots=True)
class State:
    """What is stored of an entry."""

    last: datetime
    due: datetime
    count: int
    claimed: bool
    unknown_since: int | None

    @classmethod
    def read(cls, text: str) -> State:
        """What ``text`` says."""
        said = json.loads(text)
        last, due = (datetime.fromisoformat(said[part]) for part in ("last_run_at", "due"))
        claimed = said.get("claimed", False)
        return cls(last, due, said["total_run_count"], claimed, said.get("unknown_since"))

    def plan(self) -> tuple[datetime, datetime, int]:
        """What it says of the ticks."""
        return self.last, self.due, self.count


@dataclass
class _Entry:
    """What is known of one entry."""

    spec: Spec | None = None  # of who wrote its state last
    labels: dict[datetime, str] = field(default_factory=dict)
    latest: datetime | None = None
    published: set[datetime] = field(default_factory=set)
    remembered: str = ""  # what was stored when it was lost
    known_at: datetime | None = None  # by Redis's clock, that a leader knew it


@dataclass
class Judge:
    """Raises ``Broken`` at the first thing that must not be."""

    zone: str
    most: int
    deadline: float | None
    retention: float
    clocks_agree: bool
    fenced: bool
    reigns: dict[int, Reign] = field(default_factory=dict)
    dispatched: int = 0
    entries: dict[str, _Entry] = field(default_factory=dict)
    term: int = 0
    #: What the one that writes has read off its clock in this turn.
    read: tuple[datetime, ...] = ()

    def lost(self, entry: str, state: str) -> None:
        """Redis has lost this one: nothing is promised of the past."""
        self.entries[entry] = _Entry(remembered=state)

    def leads(self, term: int, reign: Reign) -> None:
        """Somebody was elected."""
        self.reigns[term], self.term = reign, term

    def message(self, entry: str, label: str, term: int, task_id: str) -> None:
        """A message without a fence was published, maybe by who leads no more."""
        seen, due = self._entry(entry), datetime.fromisoformat(label)
        before = seen.labels.setdefault(due, task_id)
        _check(before == task_id, f"{entry}: {label} is published again under another id")
        seen.published.add(due)
        _check(term in self.reigns, f"{entry}: is sent in a term that nobody had")

    def written(self, what: Written, now: datetime) -> None:
        """Redis agreed to this at ``now``, by its own clock."""
        _check(what.term == self.term, f"{what.entry}: written in term {what.term} of {self.term}")
        reign, seen = self.reigns[what.term], self._entry(what.entry)
        if not what.new:
            self._forgotten(what.entry, seen, reign, now)
        elif what.entry not in reign.specs:
            self._marked(what, reign)
        else:
            self._of_known(what, reign, seen, now)
        if what.entry in reign.specs:
            seen.known_at = now

    def at_rest(self, states: dict[str, str], term: int, clock: datetime) -> None:
        """Its leader has nothing to do by its ``clock``: nothing is due, or was forgotten."""
        reign = self.reigns[term]
        for name in reign.specs:
            if name not in states and self._entry(name).remembered:
                continue  # it is missed when it is due
            _check(name in states, f"{name}: is known and has no state")
            state = State.read(states[name])
            _check(state.due > clock, f"{name}: stays due since {state.due}")

    # -- one change ---------------------------------------------------------------------

    def _entry(self, name: str) -> _Entry:
        return self.entries.setdefault(name, _Entry())

    def _forgotten(self, name: str, seen: _Entry, reign: Reign, now: datetime) -> None:
        _check(name not in reign.specs, f"{name}: is removed by who knows it")
        since = seen.known_at
        kept = (now - since).total_seconds() if since else self.retention
        _check(kept >= self.retention - 0.01, f"{name}: is removed after {kept} s")
        self.entries[name] = _Entry()

    def _marked(self, what: Written, reign: Reign) -> None:
        old, new = json.loads(what.old), json.loads(what.new)
        old.pop("unknown_since", None)
        _check(new.pop("unknown_since", None) is not None, f"{what.entry}: is written unknown")
        _check(old == new, f"{what.entry}: is changed by who does not know it")
        _check(not what.pushed, f"{what.entry}: is sent by who does not know it")

    def _of_known(self, what: Written, reign: Reign, seen: _Entry, now: datetime) -> None:
        spec, clock = reign.specs[what.entry], now + reign.offset
        new = State.read(what.new)
        _check(new.unknown_since is None or not what.pushed, f"{what.entry}: stays unknown")
        if not what.old:
            self._begun(what, new, reign, seen, clock)
            seen.spec = spec
            return
        old = State.read(what.old)
        if new.plan() == old.plan():
            # Marked, unmarked, claimed, or of another schedule that is due at the same time.
            _check(not what.pushed, f"{what.entry}: is sent, and its state stays")
            if new.claimed and not old.claimed:
                self._not_early(what.entry, old, clock)
            elif old.claimed != new.claimed:
                raise Broken(f"{what.entry}: a claim is withdrawn")
            if old.claimed:
                return  # what was claimed is confirmed as what it was claimed as
            if json.loads(what.old).get("schedule") != json.loads(what.new).get("schedule"):
                self._moved(what.entry, old, new, reign, seen, clock)
                seen.spec = spec
            return
        if new.count != old.count:
            self._dispatched(what, old, new, reign, seen, clock)
        else:
            _check(not what.pushed, f"{what.entry}: is sent and not counted")
            _check(not old.claimed, f"{what.entry}: what was claimed is put off")
            self._moved(what.entry, old, new, reign, seen, clock)
        seen.spec = spec

    def _begun(
        self, what: Written, new: State, reign: Reign, seen: _Entry, clock: datetime
    ) -> None:
        name, spec = what.entry, reign.specs[what.entry]
        if seen.remembered:
            return  # who wrote it may go on, and nothing is promised
        _check(new.count == 0, f"{name}: begins with a count of {new.count}")
        _check(seen.spec is None, f"{name}: begins anew")
        _check(reign.since <= new.last <= clock, f"{name}: begins at {new.last}")
        self._follows(name, spec, new)

    def _not_early(self, name: str, old: State, clock: datetime) -> None:
        _check(old.due <= clock, f"{name}: is sent at {clock}, and due at {old.due}")

    def _dispatched(
        self, what: Written, old: State, new: State, reign: Reign, seen: _Entry, clock: datetime
    ) -> None:
        name, spec = what.entry, reign.specs[what.entry]
        _check(new.count == old.count + 1, f"{name}: counts {new.count} after {old.count}")
        if not old.claimed:  # what was claimed may be out already, by another's clock
            self._not_early(name, old, clock)
            _check(
                seen.spec is None or seen.spec.is_same_schedule(spec),
                f"{name}: is sent by an old schedule",
            )
        if self.fenced:
            (message,) = what.pushed
            label, term, task_id = json.loads(message)
            _check(term == what.term, f"{name}: is labelled with term {term}")
            self._equal(name, datetime.fromisoformat(label), old.due)
            _check(old.due not in seen.labels, f"{name}: {label} is sent again")
            seen.labels[old.due] = task_id
        else:
            _check(old.due in seen.published, f"{name}: {old.due} counts as sent, and was not")
        if self.clocks_agree and seen.latest is not None:
            _check(old.due > seen.latest, f"{name}: {old.due} is sent after {seen.latest}")
        seen.latest = old.due
        self.dispatched += 1
        if spec.mode == "all":
            self._equal(name, new.last, old.due)
        else:
            _check(reign.since <= new.last <= clock, f"{name}: ran at {new.last}, now is {clock}")
            _check(old.claimed or new.last >= old.due, f"{name}: ran before it was due")
        self._follows(name, spec, new)

    def _moved(
        self, name: str, old: State, new: State, reign: Reign, seen: _Entry, clock: datetime
    ) -> None:
        """Its next tick is another, and nothing was sent: is that what was promised?"""
        broken: Broken | None = None
        for read, shifted in itertools.product(self.read or (clock,), (True, False)):
            try:
                return self._moved_at(name, old, new, reign, seen, read, shifted=shifted)
            except Broken as exc:
                broken = exc
        raise broken or Broken(name)

    def _moved_at(
        self,
        name: str,
        old: State,
        new: State,
        reign: Reign,
        seen: _Entry,
        clock: datetime,
        *,
        shifted: bool,
    ) -> None:
        spec = reign.specs[name]
        due, passed = old.due, False
        if seen.spec is not None and not seen.spec.is_same_schedule(spec):
            due = spec.after(old.last, self.zone, shifted=shifted)
            if due < clock:
                due, passed = spec.missed(due, clock, self.zone, shifted=shifted)[-1], True
        if old.last > reign.since + _EARLY and spec.kind != "cron" and new.last < old.last:
            _check(not self.clocks_agree, f"{name}: is counted anew by clocks that agree")
            seen.labels.clear()  # relative ones come to the same times again
            _check(reign.since <= new.last <= clock, f"{name}: is counted from {new.last}")
            self._follows(name, spec, new)
            return
        if spec.mode == "none" and new.last != old.last:
            _check(due < clock, f"{name}: is counted anew, and missed nothing")
            _check(reign.since <= new.last <= clock, f"{name}: is counted from {new.last}")
            self._follows(name, spec, new)
            return
        _check(new.last == old.last, f"{name}: ran at {new.last} without being sent")
        if spec.kind == "cron" and not shifted:
            due = spec.after(due - timedelta(microseconds=1), self.zone, shifted=False)
        if new.due == due:
            return
        choices = [due]
        if spec.kind == "cron":
            # Of what the clocks pass over, Celery may keep some and leave out some.
            told = [
                spec.missed(
                    spec.after(old.last, self.zone, shifted=each), clock, self.zone, shifted=each
                )
                for each in (True, False)
            ]
            if new.due in set(told[0]) - set(told[1]):
                return
        if spec.kind == "cron" and self.deadline is not None:
            late = spec.missed(due, clock, self.zone, shifted=shifted)
            choices += [each for each in late if (clock - each).total_seconds() <= self.deadline]
            # None of them may be left: then it is the next one.
            passed = [*late, due][-1]
            if (clock - passed).total_seconds() > self.deadline or not late:
                choices += [spec.after(clock, self.zone, shifted=shifted)]
            choices = choices[1:2] or choices
        if spec.mode == "all":
            choices += spec.missed(choices[0], clock, self.zone, shifted=shifted)[-self.most :][:1]
        _check(
            new.due in choices,
            f"{name} {spec}: {old.due} is put off to {new.due} at {clock}, not to {choices}",
        )

    def _follows(self, name: str, spec: Spec, new: State) -> None:
        dues = [spec.after(new.last, self.zone, shifted=each) for each in (True, False)]
        _check(new.due in dues, f"{name} {spec}: says {new.due}, and is due at {dues[0]}")

    def _equal(self, name: str, told: datetime, due: datetime) -> None:
        _check(told == due, f"{name}: says {told}, and is due at {due}")


def _check(holds: bool, says: str) -> None:
    if not holds:
        raise Broken(says)
