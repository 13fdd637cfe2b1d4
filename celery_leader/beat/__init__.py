"""Schedulers for ``celery beat`` of which one dispatches, however many beats run."""

from __future__ import annotations

from .mixin import LeaderMixin, LeaderPersistentScheduler, LeaderScheduler

__all__ = ("LeaderMixin", "LeaderPersistentScheduler", "LeaderScheduler")
