"""django-celery-beat with an elected leader: ``celery beat -S leader-django``.

Needs the package django-celery-beat. Entries and changes made in the admin are picked up
as with its own scheduler.
"""

from __future__ import annotations

from django_celery_beat.schedulers import DatabaseScheduler

from .beat import LeaderMixin


class LeaderDatabaseScheduler(LeaderMixin, DatabaseScheduler):  # type: ignore[misc]
    """``DatabaseScheduler`` that dispatches on the leading beat only."""
