"""Reads an election's record and candidates from Redis, over a new connection."""

from __future__ import annotations

from celery_leader.core.lease import Record
from celery_leader.runtime.leadership import Leadership
from celery_leader.store.register import Candidate


def record_of(leadership: Leadership, election: str) -> Record | None:
    """The election's record."""
    with leadership.redis.session() as session:
        return session.store.read(election)


def candidates_of(leadership: Leadership, election: str) -> list[Candidate]:
    """The election's register of candidates."""
    with leadership.redis.session() as session:
        return session.store.register.candidates(election)
