"""django-celery-beat with an elected leader: ``celery beat -S leader-django``.

Needs the package django-celery-beat. Changes made in the admin are picked up as by its own
scheduler. That scheduler writes the last runs into the rows only every few minutes. So the shared
state takes the place of the rows' last runs, and a run that the last leader could not write is not
repeated.

If a user sets the last run or the run count of a row, that counts. So the shared state also says
what the row held when its entry was sent. If a row now holds neither that nor what the leader was
about to write, it was made, switched on or reset since. Then the row counts, and not the shared
state. Not guaranteed: that this notices a reset to exactly what the row held before its last run,
if the reset comes before that run is written.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, InterfaceError, close_old_connections
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry

from celery_leader.errors import StoreUnavailable

from .entry_state import last_run, read
from .mixin import LeaderMixin
from .moments import timestamp, utc_text
from .plan import Tick
from .timetable import occurrence_after

#: How far django-celery-beat sets back the last run of a row that has a start time and never ran.
_SET_BACK = datetime.timedelta(days=365 * 30)

#: The last run of an entry and its run count, by the shared state.
Run = tuple[datetime.datetime, int]

_CLOSE = 1.0  # seconds; some databases keep no fractions of a second


@dataclass(frozen=True, slots=True)
class Row:
    """The last run and the run count of an entry, as its row has them."""

    key: str
    last_run_at: float | None
    count: int

    @classmethod
    def of(cls, model: Any) -> Row:
        """The row of ``model``, which was just read or written."""
        ran = model.last_run_at
        return cls(str(model.pk), None if ran is None else timestamp(ran), model.total_run_count)

    @classmethod
    def stored(cls, fields: Any) -> Row | None:
        """The row as a shared state remembers it; ``None`` if that makes no sense."""
        if not isinstance(fields, dict):
            return None
        key, ran, count = fields.get("key"), fields.get("last_run_at"), fields.get("count")
        if not (isinstance(key, str) and isinstance(count, int)):
            return None
        return cls(key, ran if isinstance(ran, int | float) else None, count)

    def as_stored(self) -> dict[str, Any]:
        """The fields that ``stored`` reads."""
        return {"key": self.key, "last_run_at": self.last_run_at, "count": self.count}

    def is_like(self, other: Row) -> bool:
        """Whether both are the same row, with the same last run and run count."""
        if (self.key, self.count) != (other.key, other.count):
            return False
        if self.last_run_at is None or other.last_run_at is None:
            return self.last_run_at is other.last_run_at
        return abs(self.last_run_at - other.last_run_at) < _CLOSE


class _Known:
    """What a leader knows of an entry's row; the entry shares it with those that follow it."""

    def __init__(self, row: Row) -> None:
        #: The row as it was read or written last.
        self.row = row
        #: Whether the entry ran since the row was read.
        self.ran = False
        #: The shared run after which a user set the row, so that the row counts since then.
        self.ahead_of: Run | None = None


class LeaderModelEntry(ModelEntry):  # type: ignore[misc]
    """An entry that does not overwrite what others have set in its row."""

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

    def is_due(self) -> Any:
        """Whether it is due; a row that ran as often as it should is switched off."""
        model = self.model
        before = model.enabled, model.total_run_count, model.last_run_at
        try:
            return super().is_due()
        except Exception:
            # The database may not have taken it, and then the row is still on.
            model.enabled, model.total_run_count, model.last_run_at = before
            raise

    def save(self) -> None:
        """Write the last run into the row, unless somebody has set it since the row was read."""
        if not self.known.ran:
            return  # an earlier row of this name had the run
        if not self.model.enabled:
            return  # this leader has switched the row off; if it is on now, a user did that
        row = type(self.model)._default_manager.get(pk=self.model.pk)
        if not Row.of(row).is_like(self.known.row):
            return  # the row is read again, and then it counts
        for name in self.save_fields:
            setattr(row, name, getattr(self.model, name))
        row.save()
        self.known.row = Row.of(row)

    @property
    def due_at(self) -> datetime.datetime | None:
        """When the entry is due next; ``None`` if nobody can compute that."""
        start = self.model.start_time
        if isinstance(self.schedule, clocked):
            due = self.schedule.clocked_time
        elif self.waits_since is not None:
            due = self.waits_since
        else:
            due = occurrence_after(self.schedule, self.last_run_at)
        return max((each for each in (due, start) if each is not None), key=timestamp, default=None)


class LeaderDatabaseScheduler(LeaderMixin, DatabaseScheduler):  # type: ignore[misc]
    """``DatabaseScheduler`` that dispatches on the leading beat only."""

    Entry = LeaderModelEntry
    store_errors = (DatabaseError, InterfaceError)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # By entry, the row to store in the shared state; ``None`` if the row was switched off.
        self._rows_to_note: dict[str, Row | None] = {}
        super().__init__(*args, **kwargs)

    def entries_in_memory(self) -> dict[str, Any]:
        """No entries: ``all_as_schedule`` decides whether a row or the shared state counts."""
        return {}

    def known_entries(self) -> Collection[str]:
        """The names of all rows, including those that are switched off or far from due."""
        close_old_connections()
        return set(self.Model._default_manager.values_list("name", flat=True))

    def take_over(self, term: int) -> bool:
        """Go on from where the last leader stopped, in the database and in the shared state."""
        # Other leaders may have led since. What this beat has in memory is out of date.
        self._dirty.clear()
        self._rows_to_note.clear()
        self._schedule: dict[str, Any] | None = None
        self._initial_read = True
        return super().take_over(term)

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """Take one turn as the leader; first store in Redis what the rows hold."""
        term = self.leading_term()
        if term is not None and self._rows_to_note:
            self._note_rows(term)
        return super().lead(*args, **kwargs)

    def all_as_schedule(self) -> dict[str, Any]:
        """The rows as entries, with the shared last runs in place of the rows' own."""
        before = dict(self._schedule or {})
        entries: dict[str, Any] = super().all_as_schedule()
        for name, entry in list(before.items()):
            if not entry.model.enabled:
                # It was to run once, and this leader has switched it off. If it is on now, it
                # counts as new, whatever it holds.
                self._rows_to_note[name] = None
                del before[name]
        for name, entry in entries.items():
            last = last_run(self._states.of(name))
            if last is None:
                continue
            entry.known.ahead_of = self._ahead_of(name, entry, before.get(name), last)
            if entry.known.ahead_of is None:
                self.ran_last(entry, *last)
                entry.waits_since = None
                entry.model.last_run_at, entry.model.total_run_count = entry.last_run_at, last[1]
        return entries

    def _ahead_of(self, name: str, entry: Any, before: Any, last: Run) -> Run | None:
        """The shared run ``last``, if the row was made, switched on or set after it."""
        if self.is_future(entry.last_run_at):
            return None  # a beat whose clock was ahead wrote that
        row, (moment, count) = entry.known.row, last
        state = read(self._states.of(name))
        held: Row | None
        if before is not None and before.known.row.is_like(row):
            return last if before.known.ahead_of == last else None
        if before is not None:
            held = before.known.row
        elif name in self._rows_to_note:
            held = self._rows_to_note[name]
        elif "row" in state:
            held = Row.stored(state["row"])
        else:  # a beat with another scheduler stored it
            return last if timestamp(moment) <= timestamp(entry.last_run_at) else None
        if held is None:
            return last
        by_a_leader = row.is_like(held) or row.is_like(Row(held.key, timestamp(moment), count))
        return None if by_a_leader else last

    def reserve(self, entry: Any) -> Any:
        """Advance ``entry``, also in the schedule; on a follower it stays as it is."""
        following = super().reserve(entry)
        # The state that is stored with the message says itself what the row held.
        self._rows_to_note.pop(entry.name, None)
        entries = self._schedule or {}
        if entry.name in entries and entries[entry.name].known is entry.known:
            # Celery makes its heap anew from these entries. The old one would be due again.
            entries[entry.name] = following
        return following

    def sync(self) -> None:
        """Write the last runs to the database; a follower writes nothing."""
        dirty = set(self._dirty)
        super().sync()
        for name in dirty - self._dirty:
            entry = (self._schedule or {}).get(name)
            last = last_run(self._states.of(name))
            if entry is not None and last is not None and entry.known.ahead_of != last:
                self._rows_to_note[name] = entry.known.row if entry.model.enabled else None

    def _note_rows(self, term: int) -> None:
        """Store in Redis what rows hold now. An older value found later was set by a user."""
        changes = {
            name: {"row": row and row.as_stored()}
            for name, row in self._rows_to_note.items()
            if last_run(self._states.of(name)) is not None
        }
        # If Redis does not answer, the next turn tries again.
        with contextlib.suppress(StoreUnavailable):
            if self._amend(term, changes):
                self._rows_to_note.clear()

    def tick_of(self, entry: Any, before: str) -> Tick:
        """The next tick of ``entry``; ``before`` is the entry's shared state."""
        told = ran = utc_text(entry.last_run_at)
        last = last_run(before)
        if last is not None and entry.known.ahead_of == last:
            # A user set the row, maybe to a value that it had before. The shared run in the text
            # tells this tick from the earlier one.
            ran = utc_text(last[0])
            told = f"{told} after {ran}"
        elif last is not None and timestamp(last[0]) > timestamp(entry.last_run_at):
            told = str(read(before).get("tick"))  # the entry was read before its last run
        if told != ran or last is None:
            self._last_sync = None  # write the row soon: a user may set the same value again
        label = utc_text(entry.due_at or entry.default_now())
        return Tick(told, label, ran, {"row": entry.known.row.as_stored()}).as_claimed(before)

    def ran_at(self, entry: Any) -> datetime.datetime | None:
        """The run of ``entry`` that its row has; the row was advanced before this call."""
        ran: datetime.datetime = entry.model.last_run_at
        return ran if timestamp(ran) > timestamp(entry.last_run_at) else None
