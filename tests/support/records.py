"""Reads an election's record and candidates from Redis, over a new connection."""

from __future__ import annotations

from celery_leader.core.lease import Record
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.store.register import Candidate


def record_of(runtime: AppRuntime, election: str) -> Record | None:
    """The election's record."""
    with runtime.redis.session() as session:
        return session.store.read(election)


def candidates_of(runtime: AppRuntime, election: str) -> list[Candidate]:
    """The election's register of candidates."""
    with runtime.redis.session() as session:
        return session.store.register.candidates(election)
