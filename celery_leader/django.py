"""django-celery-beat with an elected leader: ``celery beat -S leader-django``.

Needs the package django-celery-beat. Entries and changes made in the admin are picked up
as with its own scheduler. That one writes to the database when an entry ran last only every
few minutes, and reads its rows again as often; the state that beats share is laid over
what is read, so that a row the last leader could not write is not sent again.
"""

from __future__ import annotations

import datetime
from typing import Any

from django.db import DatabaseError, InterfaceError
from django_celery_beat.schedulers import DatabaseScheduler

from .beat import LeaderMixin
from .plan import at


class LeaderDatabaseScheduler(LeaderMixin, DatabaseScheduler):  # type: ignore[misc]
    """``DatabaseScheduler`` that dispatches on the leading beat only."""

    store_errors = (DatabaseError, InterfaceError)

    def take_over(self, term: int) -> bool:
        """Go on from what the last leader left, in the database and in the shared state."""
        # What this beat had in memory when it led before has been overtaken since.
        self._dirty.clear()
        self._initial_read = True
        return super().take_over(term)

    def all_as_schedule(self) -> dict[str, Any]:
        """The rows, as they are and as beats share them."""
        entries: dict[str, Any] = super().all_as_schedule()
        self.bring_up_to_date(entries)
        return entries

    def ran_last(self, entry: Any, moment: datetime.datetime, count: int) -> None:
        """Have ``entry`` go on from there, unless its row says that it ran or changed later."""
        if at(moment) > at(entry.last_run_at):
            super().ran_last(entry, moment, count)
            entry.model.last_run_at, entry.model.total_run_count = entry.last_run_at, count
