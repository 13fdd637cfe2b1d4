"""The next tick of an entry, and the state that is stored for it.

``Plan`` is for ``-S leader``, which numbers the ticks of an entry and stores when the next is due.
``Tick`` is for other schedulers. There the last run that a tick counts from identifies the tick.
The only clock read here is that of the entry. Guaranteed: the due time of a tick is the stored
one, whichever beat dispatches it.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from celery_leader.runtime.settings import CatchUp

from .entry_state import SENSELESS, last_run, moment_of, project_of, read, written
from .moments import in_zone_of, utc_text
from .timetable import fingerprint, occurrence_after

#: The entry option that overrides ``leader_beat_catch_up`` for one entry.
CATCH_UP_OPTION = "leader_catch_up"

#: Identifies the first tick of an entry that never ran. The text is always the same. Otherwise the
#: tick would be sent again if the note of its run was lost.
_NEVER = "never"


@dataclass(frozen=True, slots=True)
class Plan:
    """One entry, its next tick, and the state that is stored for both."""

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

        ``claimed``: the tick may have been published already, but nobody has confirmed that.
        """
        state: dict[str, Any] = {
            "sequence": sequence,
            "due": utc_text(due),
            "last_run_at": utc_text(entry.last_run_at),
            "total_run_count": entry.total_run_count,
            "schedule": fingerprint(entry.schedule),
        }
        if claimed:
            state["claimed"] = True
        return cls(entry, sequence, due, written(state, project), claimed, project)

    @classmethod
    def restored(cls, entry: Any, stored: str) -> Plan | None:
        """The plan that the last leader stored; ``None`` if none, or if the schedule changed."""
        plan = cls._of(entry, stored)
        return plan if plan is not None and plan.is_for(entry.schedule) else None

    @classmethod
    def of_another_schedule(cls, entry: Any, stored: str) -> Plan | None:
        """The stored plan of an entry whose schedule was changed; it has the old due time.

        The last run stays as it was, since a new schedule does not change it.
        """
        plan = cls._of(entry, stored)
        if plan is None:
            return None
        # A claimed tick must be confirmed under the number that it was claimed with.
        return plan._with(sequence=plan.sequence + (not plan.claimed))

    @classmethod
    def _of(cls, entry: Any, stored: str) -> Plan | None:
        last = last_run(stored)
        if last is None:
            return None
        state = read(stored)
        try:
            restored = _like(entry, in_zone_of(entry, last[0]), last[1])
            sequence, due = int(state["sequence"]), moment_of(state["due"])
        except SENSELESS:
            return None
        claimed = bool(state.get("claimed"))
        return cls(restored, sequence, due, stored, claimed, project_of(stored))

    @classmethod
    def anchored(cls, entry: Any, stored: str, due: datetime.datetime) -> Plan:
        """A plan for an entry that is new, or whose stored state makes no sense."""
        try:
            sequence = int(read(stored)["sequence"])
        except SENSELESS:
            sequence = 0
        return cls.to_dispatch(entry, sequence + 1, due)

    def is_for(self, timetable: Any) -> bool:
        """Whether this plan was made for ``timetable``."""
        return bool(read(self.state).get("schedule") == fingerprint(timetable))

    def claim(self) -> Plan:
        """This plan after its tick was claimed and may be published."""
        return self._with(claimed=True)

    def of_project(self, project: str) -> Plan:
        """This plan, as one that belongs to ``project``."""
        return self if self.project == project else self._with(project=project)

    def dispatched(self, at: datetime.datetime, due: datetime.datetime) -> Plan:
        """The plan after this tick was dispatched; the entry ran last ``at``."""
        # In the zone of the entry's clock: days of a relative interval begin at midnight there.
        ran = in_zone_of(self.entry, at)
        entry = _like(self.entry, ran, self.entry.total_run_count + 1)
        return self._with(entry=entry, sequence=self.sequence + 1, due=due, claimed=False)

    def postponed(self, due: datetime.datetime) -> Plan:
        """This plan with another due time."""
        return self._with(due=due)

    def restarted(self, at: datetime.datetime, due: datetime.datetime) -> Plan:
        """This plan counted from ``at``, with nothing dispatched."""
        return self._with(entry=counted_from(self.entry, at), due=due)

    def _with(self, **changes: Any) -> Plan:
        names = ("entry", "sequence", "due", "claimed", "project")
        return self.to_dispatch(**{name: getattr(self, name) for name in names} | changes)


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick of an entry that another scheduler plans; it counts from the last run.

    Attributes:
        counted_from: the last run it counts from, as text; tells it from other ticks of its entry.
        label: its due time, as text.
        ran_before: the last run of the entry before this tick, as text.
        facts: other fields that are stored in the state once the tick was sent.
        project: the project that the entry belongs to.
    """

    counted_from: str
    label: str
    ran_before: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    project: str = ""

    @classmethod
    def of(cls, entry: Any, before: str = "") -> Tick:
        """The next tick of ``entry``; ``before`` is the entry's stored state."""
        ran = entry.last_run_at
        due = (occurrence_after(entry.schedule, ran) if ran else None) or entry.default_now()
        told = utc_text(ran) if ran else _NEVER
        return cls(told, utc_text(due), told).as_claimed(before)

    def as_claimed(self, before: str) -> Tick:
        """The same tick, with the label of an earlier claim if ``before`` has one."""
        state = read(before)
        if state.get("claimed") and state.get("tick") == self.counted_from:
            try:
                moment_of(state["due"])
            except SENSELESS:
                return self
            return replace(self, label=str(state["due"]))
        return self

    def is_in(self, stored: str) -> bool:
        """Whether ``stored`` says that this tick was sent.

        ``noted`` means that the scheduler's own store has that run, too. If that store shows the
        old last run again afterwards, a user has set it on purpose, and this is a new tick.
        """
        state = read(stored)
        sent = state.get("tick") == self.counted_from and not state.get("claimed")
        return sent and not state.get("noted")

    def claimed(self, before: str) -> str:
        """The state between the claim of this tick and its confirmation."""
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
        """The state after this tick was sent; the entry ran ``at``, or now."""
        return written(
            {
                "tick": self.counted_from,
                "last_run_at": utc_text(at or entry.default_now()),
                "total_run_count": (entry.total_run_count or 0) + 1,
                **self.facts,
            },
            self.project,
        )


def anchor(entry: Any, moment: datetime.datetime, project: str = "") -> str:
    """The first state of an entry that another scheduler plans; it counts from ``moment``."""
    return written(
        {"last_run_at": utc_text(moment), "total_run_count": entry.total_run_count or 0}, project
    )


def task_id_of(namespace: str, entry: str, tick: str) -> str:
    """The task id of one tick's message; every beat computes the same id."""
    name = f"celery-leader:{namespace}:{entry}:{tick}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def catch_up_of(entry: str, options: dict[str, Any] | None, default: CatchUp) -> CatchUp:
    """How the entry called ``entry`` catches up, by its ``options`` or by ``default``.

    Raises:
        LeaderError: the value of the option is not allowed.
    """
    value = options.get(CATCH_UP_OPTION) if isinstance(options, dict) else None
    if value is None:
        return default
    return CatchUp.named(value, f"options[{CATCH_UP_OPTION!r}] of the entry {entry!r}")


def counted_from(entry: Any, moment: datetime.datetime) -> Any:
    """``entry`` as if it had run last at ``moment``."""
    return _like(entry, moment, entry.total_run_count)


def _like(entry: Any, last_run_at: datetime.datetime, total_run_count: int) -> Any:
    fields = dict(entry, last_run_at=last_run_at, total_run_count=total_run_count)
    return entry.__class__(**fields)
