"""django-celery-beat with an elected leader: ``celery beat -S leader-django``.

Needs the package django-celery-beat. Entries and changes made in the admin are picked up
as with its own scheduler. That one writes to the database when an entry ran last only every
few minutes, and reads its rows again as often; the state that beats share is laid over
what is read, so that a row the last leader could not write is not sent again.

Whoever sets a row's last run or its run count means it. So the shared state also says what the
row held when its entry was sent: a row that holds neither that, nor what the leader was to write,
nor is the same row, was made, switched on or reset since, and counts by itself. Not guaranteed: a
reset to exactly what the row held before its last run, while that run is not written yet.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, InterfaceError, close_old_connections
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry

from celery_leader.errors import StoreUnavailable

from .entry_state import amended, read
from .mixin import LeaderMixin
from .plan import Tick, at, last_run, occurrence_after, utc

#: How far a row that never ran, with a start time, is set back by django-celery-beat.
_SET_BACK = datetime.timedelta(days=365 * 30)

#: When an entry ran last by the shared state, and how often.
Run = tuple[datetime.datetime, int]

_CLOSE = 1.0  # seconds; some databases keep no fractions of a second


@dataclass(frozen=True, slots=True)
class Row:
    """What a row says of its runs."""

    key: str
    last_run_at: float | None
    count: int

    @classmethod
    def of(cls, model: Any) -> Row:
        """What the row of ``model`` says, which was just read or written."""
        ran = model.last_run_at
        return cls(str(model.pk), None if ran is None else at(ran), model.total_run_count)

    @classmethod
    def stored(cls, fields: Any) -> Row | None:
        """What a shared state says that its row held; ``None`` if nothing that makes sense."""
        if not isinstance(fields, dict):
            return None
        key, ran, count = fields.get("key"), fields.get("last_run_at"), fields.get("count")
        if not (isinstance(key, str) and isinstance(count, int)):
            return None
        return cls(key, ran if isinstance(ran, int | float) else None, count)

    def as_stored(self) -> dict[str, Any]:
        """What ``stored`` reads."""
        return {"key": self.key, "last_run_at": self.last_run_at, "count": self.count}

    def is_like(self, other: Row) -> bool:
        """Whether both are of one row, and nobody has set it in between."""
        if (self.key, self.count) != (other.key, other.count):
            return False
        if self.last_run_at is None or other.last_run_at is None:
            return self.last_run_at is other.last_run_at
        return abs(self.last_run_at - other.last_run_at) < _CLOSE


class _Known:
    """What a leader knows of the row of an entry; the entries of its further runs share it."""

    def __init__(self, row: Row) -> None:
        #: What it holds.
        self.row = row
        #: Whether the entry ran since it was read.
        self.ran = False
        #: The shared run that it was set after, if it was: from then on it counts by itself.
        self.ahead_of: Run | None = None


class LeaderModelEntry(ModelEntry):  # type: ignore[misc]
    """An entry that knows what its row holds, and does not write over what others set there."""

    def __init__(self, model: Any, app: Any = None) -> None:
        self.known = _Known(Row.of(model))
        super().__init__(model, app=app)
        never_ran = self.known.row.last_run_at is None
        #: Since when a row that never ran waits for its start time.
        self.waits_since = self.last_run_at + _SET_BACK if never_ran and model.start_time else None

    def __next__(self) -> LeaderModelEntry:
        following: LeaderModelEntry = super().__next__()
        following.known, following.waits_since = self.known, None
        following.known.ran = True
        return following

    def save(self) -> None:
        """Write when it ran last, unless somebody has set that since it was read."""
        if not self.known.ran:
            return  # a row of this name ran that is there no more
        row = type(self.model)._default_manager.get(pk=self.model.pk)
        if not Row.of(row).is_like(self.known.row):
            return  # it is read again, and then counts by itself
        for name in self.save_fields:
            setattr(row, name, getattr(self.model, name))
        row.save()
        self.known.row = Row.of(row)

    @property
    def due_at(self) -> datetime.datetime | None:
        """When it is due next, or ``None`` if that cannot be told."""
        start = self.model.start_time
        if isinstance(self.schedule, clocked):
            due = self.schedule.clocked_time
        elif self.waits_since is not None:
            due = self.waits_since
        else:
            due = occurrence_after(self.schedule, self.last_run_at)
        return max((each for each in (due, start) if each is not None), key=at, default=None)


class LeaderDatabaseScheduler(LeaderMixin, DatabaseScheduler):  # type: ignore[misc]
    """``DatabaseScheduler`` that dispatches on the leading beat only."""

    Entry = LeaderModelEntry
    store_errors = (DatabaseError, InterfaceError)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # What is to be stored of rows beside their last tick; ``None``: it is switched off.
        self._rows_to_note: dict[str, Row | None] = {}
        super().__init__(*args, **kwargs)

    def entries_in_memory(self) -> dict[str, Any]:
        """None: what counts of a row is decided whenever it is read."""
        return {}

    def known_entries(self) -> Collection[str]:
        """The names of all rows, also of those that are switched off or far from due."""
        close_old_connections()
        return set(self.Model._default_manager.values_list("name", flat=True))

    def take_over(self, term: int) -> bool:
        """Go on from what the last leader left, in the database and in the shared state."""
        # What this beat had in memory when it led before has been overtaken since.
        self._dirty.clear()
        self._rows_to_note.clear()
        self._schedule: dict[str, Any] | None = None
        self._initial_read = True
        return super().take_over(term)

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """One turn as the leader, which first notes what has become of rows."""
        term = self.leading_term()
        if term is not None and self._rows_to_note:
            self._note_rows(term)
        return super().lead(*args, **kwargs)

    def all_as_schedule(self) -> dict[str, Any]:
        """The rows, as they are and as beats share them."""
        before = self._schedule or {}
        entries: dict[str, Any] = super().all_as_schedule()
        for name, entry in before.items():
            if not entry.model.enabled:
                self._rows_to_note[name] = None  # by this leader, as it ran once for all
        for name, entry in entries.items():
            last = last_run(self._shared.get(name, ""))
            if last is None:
                continue
            entry.known.ahead_of = self._ahead_of(name, entry, before.get(name), last)
            if entry.known.ahead_of is None:
                self.ran_last(entry, *last)
                entry.waits_since = None
                entry.model.last_run_at, entry.model.total_run_count = entry.last_run_at, last[1]
        return entries

    def _ahead_of(self, name: str, entry: Any, before: Any, last: Run) -> Run | None:
        """The last shared run, if the row was made, switched on or set after it."""
        if self.is_future(entry.last_run_at):
            return None  # a beat wrote that whose clock was ahead
        row, (moment, count) = entry.known.row, last
        state = read(self._shared[name])
        held: Row | None
        if before is not None and before.known.row.is_like(row):
            return last if before.known.ahead_of == last else None
        if before is not None:
            held = before.known.row
        elif name in self._rows_to_note:
            held = self._rows_to_note[name]
        elif "row" in state:
            held = Row.stored(state["row"])
        else:  # a beat of another kind stored it
            return last if at(moment) <= at(entry.last_run_at) else None
        if held is None:
            return last
        by_a_leader = row.is_like(held) or row.is_like(Row(held.key, at(moment), count))
        return None if by_a_leader else last

    def reserve(self, entry: Any) -> Any:
        """Advance the state of ``entry``, which only the leader may, wherever it is kept."""
        following = super().reserve(entry)
        entries = self._schedule or {}
        if entry.name in entries and entries[entry.name].known is entry.known:
            # Or it would be found due again, when the heap is made anew out of these.
            entries[entry.name] = following
        return following

    def sync(self) -> None:
        """Write to the database when entries ran last, which only the leader may."""
        dirty = set(self._dirty)
        super().sync()
        for name in dirty - self._dirty:
            entry = (self._schedule or {}).get(name)
            last = last_run(self._shared.get(name, ""))
            if entry is not None and last is not None and entry.known.ahead_of != last:
                self._rows_to_note[name] = entry.known.row

    def _note_rows(self, term: int) -> None:
        """Store what rows hold now: who sets them to what they held before means it."""
        assert self._dispatcher is not None
        states = {}
        for name, row in self._rows_to_note.items():
            stored = self._shared.get(name, "")
            if last_run(stored) is not None:
                states[name] = stored, amended(stored, row=row and row.as_stored())
        try:
            if not self._dispatcher.write(term, states):
                self._led_term = None  # read the shared state again before anything else
                return
        except StoreUnavailable:
            return  # the next turn does it
        self._shared.update({name: new for name, (_, new) in states.items()})
        self._rows_to_note.clear()

    def tick_of(self, entry: Any, before: str) -> Tick:
        """The tick that ``entry`` is to dispatch, whose shared state is ``before``."""
        told = ran = utc(entry.last_run_at)
        last = last_run(before)
        if last is not None and entry.known.ahead_of == last:
            # Set on purpose, maybe to what it was set to before: after another run, another tick.
            ran = utc(last[0])
            told = f"{told} after {ran}"
        elif last is not None and at(last[0]) > at(entry.last_run_at):
            told = str(read(before).get("tick"))  # an entry of before its last run: that was it
        if told != ran or last is None:
            self._last_sync = None  # write it soon: it may be set to the same again
        label = utc(entry.due_at or entry.default_now())
        return Tick(told, label, ran, {"row": entry.known.row.as_stored()}).as_claimed(before)

    def ran_at(self, entry: Any) -> datetime.datetime | None:
        """When the row will say that ``entry`` ran: it was advanced before this."""
        ran: datetime.datetime = entry.model.last_run_at
        return ran if at(ran) > at(entry.last_run_at) else None
