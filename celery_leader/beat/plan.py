"""What is due when: the part of beat that needs no clock, no Redis and no thread.

A ``Plan`` is one schedule entry with the number and due time of its next tick, and
the text that is stored for it. Moments come in as arguments. Guaranteed: the due time
of a tick is what was stored for it, whoever dispatches it.
"""

from __future__ import annotations

import collections
import datetime
import inspect
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from celery.schedules import crontab, schedule, solar
from celery.utils.time import maybe_make_aware

from celery_leader.runtime.settings import CatchUp

from .entry_state import project_of, read, written

#: The entry option that overrides ``leader_beat_catch_up`` for one entry.
CATCH_UP_OPTION = "leader_catch_up"

#: What the first tick of an entry is counted from, if it never ran. It is always the same text,
#: or the tick would be sent again when the note of its run was lost.
_NEVER = "never"

#: What reading a state can raise that no beat has written.
_SENSELESS = (ValueError, KeyError, TypeError, OverflowError)

#: A moment of other years than these was never due; and the calendar ends near them.
_FIRST_YEAR, _LAST_YEAR = 1971, 9000

_SHORTEST_LOOK_BACK = datetime.timedelta(hours=1)

_CLOSE = 1.0  # seconds; moments as close as this are one, told by two looks at a clock


@dataclass(frozen=True, slots=True)
class Plan:
    """One entry, the tick it is to dispatch next, and what is stored of that."""

    entry: Any
    sequence: int
    due: datetime.datetime
    state: str
    claimed: bool = False
    project: str = ""

    @classmethod
    def to_dispatch(
        cls,
        entry: Any,
        sequence: int,
        due: datetime.datetime,
        *,
        claimed: bool = False,
        project: str = "",
    ) -> Plan:
        """The plan to dispatch tick number ``sequence`` of ``entry`` at ``due``.

        ``claimed``: it may have been published already, which was not confirmed.
        """
        state: dict[str, Any] = {
            "sequence": sequence,
            "due": utc(due),
            "last_run_at": utc(entry.last_run_at),
            "total_run_count": entry.total_run_count,
            "schedule": fingerprint(entry.schedule),
        }
        if claimed:
            state["claimed"] = True
        return cls(entry, sequence, due, written(state, project), claimed, project)

    @classmethod
    def restored(cls, entry: Any, stored: str) -> Plan | None:
        """What the last leader planned, or ``None`` if nothing, or for another schedule."""
        plan = cls._of(entry, stored)
        return plan if plan is not None and plan.is_for(entry.schedule) else None

    @classmethod
    def of_another_schedule(cls, entry: Any, stored: str) -> Plan | None:
        """The same for an entry whose schedule was changed; its due time is still the old one.

        Its last run stays what it was, since the change of the schedule does not change that.
        """
        plan = cls._of(entry, stored)
        if plan is None:
            return None
        # What was claimed is still to be confirmed as what it was claimed as.
        sequence = plan.sequence if plan.claimed else plan.sequence + 1
        return cls.to_dispatch(
            plan.entry, sequence, plan.due, claimed=plan.claimed, project=plan.project
        )

    @classmethod
    def _of(cls, entry: Any, stored: str) -> Plan | None:
        try:
            state = read(stored)
            last_run_at = as_told_by(entry, _moment(state["last_run_at"]))
            restored = _like(entry, last_run_at, int(state["total_run_count"]))
            sequence, due = int(state["sequence"]), _moment(state["due"])
        except _SENSELESS:
            return None
        claimed = bool(state.get("claimed"))
        return cls(restored, sequence, due, stored, claimed, project_of(stored))

    @classmethod
    def anchored(cls, entry: Any, stored: str, due: datetime.datetime) -> Plan:
        """A plan for an entry that is new, or of which nothing that makes sense was stored."""
        return cls.to_dispatch(entry, _sequence(stored) + 1, due)

    def is_for(self, timetable: Any) -> bool:
        """Whether it was made for this schedule."""
        return bool(read(self.state).get("schedule") == fingerprint(timetable))

    def claim(self) -> Plan:
        """The plan once its tick is claimed, and may be published."""
        return self._with(self.entry, self.sequence, self.due, claimed=True)

    def of_project(self, project: str) -> Plan:
        """The plan as one of ``project``."""
        if self.project == project:
            return self
        return self.to_dispatch(
            self.entry, self.sequence, self.due, claimed=self.claimed, project=project
        )

    def dispatched(self, at: datetime.datetime, due: datetime.datetime) -> Plan:
        """The plan after this tick was dispatched; the entry ran last ``at``."""
        # In the zone of its clock: days of a relative interval begin at that zone's midnight.
        ran = as_told_by(self.entry, at)
        entry = _like(self.entry, ran, self.entry.total_run_count + 1)
        return self._with(entry, self.sequence + 1, due)

    def postponed(self, due: datetime.datetime) -> Plan:
        """The plan whose next tick is due at another time."""
        return self._with(self.entry, self.sequence, due)

    def restarted(self, at: datetime.datetime, due: datetime.datetime) -> Plan:
        """The plan of an entry that is counted from ``at``, with nothing dispatched."""
        return self._with(counted_from(self.entry, at), self.sequence, due)

    def _with(
        self, entry: Any, sequence: int, due: datetime.datetime, *, claimed: bool = False
    ) -> Plan:
        return self.to_dispatch(entry, sequence, due, claimed=claimed, project=self.project)


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick of an entry that another scheduler plans: it is counted from its last run.

    Attributes:
        counted_from: what tells it from the other ticks of its entry.
        label: when it is due.
        ran_before: when the entry ran last before it.
        facts: what is stored beside, once it was sent.
        project: whose entry it is.
    """

    counted_from: str
    label: str
    ran_before: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    project: str = ""

    @classmethod
    def of(cls, entry: Any, before: str = "", due: datetime.datetime | None = None) -> Tick:
        """The tick that ``entry`` is to dispatch next, whose state is ``before``.

        ``due``: when that is, if the caller knows better than the schedule.
        """
        ran = entry.last_run_at
        if due is None:
            due = (occurrence_after(entry.schedule, ran) if ran else None) or entry.default_now()
        told = utc(ran) if ran else _NEVER
        return cls(told, utc(due), told).as_claimed(before)

    def as_claimed(self, before: str) -> Tick:
        """The same tick, as it was labelled by who claimed it before."""
        state = read(before)
        if state.get("claimed") and state.get("tick") == self.counted_from:
            label = state.get("due")
            return replace(self, label=str(label)) if _is_moment(label) else self
        return self

    def is_in(self, stored: str) -> bool:
        """Whether ``stored`` says that this tick was sent.

        ``noted``: the entry's own store knows of that run, too. If it then says the old last
        run again, somebody has set that on purpose, and this is another tick.
        """
        state = read(stored)
        sent = state.get("tick") == self.counted_from and not state.get("claimed")
        return sent and not state.get("noted")

    def claimed(self, before: str) -> str:
        """What is stored between the claim of this tick and its confirmation."""
        fields = {
            "tick": self.counted_from,
            "due": self.label,
            "last_run_at": self.ran_before,
            "total_run_count": read(before).get("total_run_count") or 0,
            "noted": False,
            "claimed": True,
        }
        return written({**read(before), **fields}, self.project)

    def sent(self, entry: Any, at: datetime.datetime | None = None) -> str:
        """What is stored once this tick was sent, and the entry ran ``at``, or now."""
        return written(
            {
                "tick": self.counted_from,
                "last_run_at": utc(at or entry.default_now()),
                "total_run_count": (entry.total_run_count or 0) + 1,
                **self.facts,
            },
            self.project,
        )


def anchor(entry: Any, moment: datetime.datetime, project: str = "") -> str:
    """What is stored of an entry of another scheduler that sent nothing yet, from ``moment`` on."""
    return written(
        {"last_run_at": utc(moment), "total_run_count": entry.total_run_count or 0}, project
    )


def last_run(stored: str) -> tuple[datetime.datetime, int] | None:
    """When an entry ran last and how often, as ``stored``; ``None`` if it was never stored."""
    state = read(stored)
    try:
        return _moment(state["last_run_at"]), int(state["total_run_count"])
    except _SENSELESS:
        return None


def task_id_of(namespace: str, entry: str, tick: str) -> str:
    """The id of the message of one tick, the same whoever publishes it."""
    name = f"celery-leader:{namespace}:{entry}:{tick}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def occurrence_after(timetable: Any, moment: datetime.datetime) -> datetime.datetime | None:
    """The first occurrence of ``timetable`` after ``moment``, or ``None`` if it cannot be told."""
    try:
        following = _following(timetable, moment)
    except Exception:  # a schedule of the user's own may raise anything
        return None
    return following if following is not None and at(following) > at(moment) else None


def _following(timetable: Any, moment: datetime.datetime) -> datetime.datetime | None:
    if isinstance(timetable, crontab):
        following = _on_the_wall(timetable, moment)
        # Told in the hour that clocks repeat, it may be in that hour's first run, which is over.
        while following.date() <= _date_at(timetable, moment) and at(following) <= at(moment):
            before, following = following, _on_the_wall(timetable, following)
            if following <= before:
                break  # a crontab of the user's own that does not go on
        return following
    if isinstance(timetable, solar) or (_is_interval(timetable) and timetable.relative):
        asked, local = _asked_at(timetable, moment)
        return later(moment, asked.remaining_estimate(local))
    if _is_interval(timetable):
        return later(moment, timetable.run_every)
    return None


def _on_the_wall(timetable: Any, moment: datetime.datetime) -> datetime.datetime:
    asked, local = _asked_at(timetable, moment)
    last, delta, _ = asked.remaining_delta(local)
    following: datetime.datetime = last + delta
    return following


def _date_at(timetable: Any, moment: datetime.datetime) -> datetime.date:
    return moment.astimezone(timetable.tz).date()


def due_of(entry: Any, due_now: bool, next_in: float) -> datetime.datetime:
    """When ``entry`` is due, which says that it is so now, or ``next_in`` seconds from now.

    The occurrence itself where it can be told, as it is the same for everybody who asks.
    """
    now = entry.default_now()
    told = now if due_now else later(now, datetime.timedelta(seconds=next_in))
    for moment in (entry.last_run_at, now):
        occurrence = occurrence_after(entry.schedule, moment)
        if occurrence is None:
            continue
        if abs(at(occurrence) - at(told)) <= _CLOSE or (due_now and at(occurrence) <= at(now)):
            return occurrence
        if not due_now and at(told) <= at(now) < at(occurrence):
            return occurrence  # a crontab told it of the first run of an hour that is repeated
    return told


def _asked_at(timetable: Any, moment: datetime.datetime) -> tuple[Any, datetime.datetime]:
    """A copy of ``timetable`` whose clock stands at ``moment``, and that in its own zone.

    "Every day, relative" is a day of the zone it is asked in, each look at the clock would
    give another microsecond, and before Celery 5.7 a crontab leaves out the rest of an hour
    that is not one of today.
    """
    local = moment.astimezone(timetable.tz)
    # By hand, because copying a crontab parses it anew.
    asked = object.__new__(type(timetable))
    vars(asked).update(vars(timetable), nowfun=lambda: local)
    return asked, local


def _is_interval(timetable: Any) -> bool:
    return type(timetable) is schedule


def latest_missed(
    timetable: Any, due: datetime.datetime, now: datetime.datetime, most: int
) -> datetime.datetime:
    """The due time to go on from, so that at most ``most`` occurrences lie before ``now``.

    ``due`` itself where there are no more than that. ``timetable`` must be one whose
    occurrences can be told.
    """
    due, now = (maybe_make_aware(each).astimezone(datetime.timezone.utc) for each in (due, now))
    if _is_interval(timetable) and not timetable.relative:
        every: datetime.timedelta = timetable.run_every
        return due + max(0, (now - due) // every + 1 - most) * every
    look_back = _SHORTEST_LOOK_BACK
    while True:
        start = max(due, now - look_back)
        recent = collections.deque(_occurrences(timetable, start, now), maxlen=most)
        if start == due:
            return due if len(recent) < most else min(recent)
        if len(recent) == most:
            return recent[0]
        look_back *= 2


def _occurrences(
    timetable: Any, start: datetime.datetime, end: datetime.datetime
) -> Iterator[datetime.datetime]:
    occurrence = occurrence_after(timetable, start)
    while occurrence is not None and occurrence <= end:
        yield occurrence
        occurrence = occurrence_after(timetable, occurrence)


def catch_up_of(entry: str, options: dict[str, Any] | None, default: CatchUp) -> CatchUp:
    """How the entry called ``entry`` catches up, which has ``options``.

    Raises:
        LeaderError: its option has a value it cannot have.
    """
    value = options.get(CATCH_UP_OPTION) if isinstance(options, dict) else None
    if value is None:
        return default
    return CatchUp.named(value, f"options[{CATCH_UP_OPTION!r}] of the entry {entry!r}")


def later(moment: datetime.datetime, delta: datetime.timedelta) -> datetime.datetime:
    """``moment`` and ``delta`` of real time; Python's own sum is one of wall clocks."""
    aware: datetime.datetime = maybe_make_aware(moment)
    return (aware.astimezone(datetime.timezone.utc) + delta).astimezone(aware.tzinfo)


def as_told_by(entry: Any, moment: datetime.datetime) -> datetime.datetime:
    """``moment`` in the zone of the clock of ``entry``, whose days may begin at its midnight."""
    zone = entry.default_now().tzinfo
    aware: datetime.datetime = maybe_make_aware(moment)
    return moment if zone is None else aware.astimezone(zone)


def at(moment: datetime.datetime) -> float:
    """Seconds since the epoch; a naive moment is UTC, as in Celery."""
    return float(maybe_make_aware(moment).timestamp())


def utc(moment: datetime.datetime) -> str:
    """``moment`` as it is stored and put into headers: UTC, ISO 8601, microseconds."""
    aware = maybe_make_aware(moment)
    return str(aware.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds"))


def fingerprint(timetable: Any) -> str:
    """What tells one schedule from another, the same in every process."""
    if _is_interval(timetable):
        # Its repr rounds: every 90 and every 90.2 seconds look the same there.
        text = f"every {timetable.run_every.total_seconds()!r} s"
        return f"{text} relative {timetable.tz}" if timetable.relative else text
    try:
        text = repr(timetable)
    except Exception:  # a schedule of the user's own may raise anything
        text = " at 0x"  # is told by its attributes, as one without a repr of its own
    if " at 0x" in text:
        told = {
            name: _told(value)
            for name, value in sorted(vars(timetable).items())
            if not _is_cached(timetable, name)
        }
        lasting = {name: value for name, value in told.items() if " at 0x" not in value}
        text = f"{type(timetable).__qualname__} {lasting}"
    zone = getattr(timetable, "tz", None) if isinstance(timetable, crontab) else None
    return f"{text} {zone}" if zone is not None else text


def _told(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return type(value).__qualname__


def _is_cached(timetable: Any, name: str) -> bool:
    """Whether ``name`` is a property's value, there only once somebody has asked for it."""
    return hasattr(inspect.getattr_static(type(timetable), name, None), "__get__")


def _moment(text: str) -> datetime.datetime:
    """A moment as it was stored.

    Raises:
        ValueError, OverflowError, TypeError: it is none.
    """
    moment = datetime.datetime.fromisoformat(text)
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"{text!r} is out of all bounds")
    return moment


def counted_from(entry: Any, moment: datetime.datetime) -> Any:
    """``entry`` as if it had run last at ``moment``."""
    return _like(entry, moment, entry.total_run_count)


def _is_moment(text: Any) -> bool:
    try:
        _moment(text)
    except _SENSELESS:
        return False
    return True


def _like(entry: Any, last_run_at: datetime.datetime, total_run_count: int) -> Any:
    fields = dict(entry, last_run_at=last_run_at, total_run_count=total_run_count)
    return entry.__class__(**fields)


def _sequence(stored: str) -> int:
    try:
        return int(read(stored)["sequence"])
    except _SENSELESS:
        return 0
