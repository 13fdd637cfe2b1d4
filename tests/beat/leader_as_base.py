"""A pytest plugin for Celery's own tests: its schedulers there are those of this package."""

from __future__ import annotations

from celery import beat

from celery_leader.beat import LeaderPersistentScheduler, LeaderScheduler

beat.Scheduler = LeaderScheduler
beat.PersistentScheduler = LeaderPersistentScheduler
