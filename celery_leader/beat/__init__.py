"""Schedulers for ``celery beat``: however many beats run, one of them dispatches."""

from __future__ import annotations

from .mixin import LeaderMixin, LeaderPersistentScheduler
from .scheduler import LeaderScheduler

__all__ = ("LeaderMixin", "LeaderPersistentScheduler", "LeaderScheduler")

# The register of candidates shows schedulers by the name that users know.
for _scheduler in (LeaderPersistentScheduler, LeaderScheduler):
    _scheduler.__module__ = __name__
