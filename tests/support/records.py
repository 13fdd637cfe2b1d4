"""Reads an election's record, candidates and holds."""

from __future__ import annotations

from celery_leader.core.lease import Record
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.register import Candidate, read_held
from celery_leader.store.scripts import HELD
from tests.support.fake_store import FakeStore


def record_of(runtime: AppRuntime, election: str) -> Record | None:
    """The election's record."""
    with runtime.redis.session() as session:
        return session.store.read(election)


def candidates_of(runtime: AppRuntime, election: str) -> list[Candidate]:
    """The election's register of candidates."""
    with runtime.redis.session() as session:
        return session.store.register.candidates(election)


def held(store: RedisLeaseStore | FakeStore, election: str) -> dict[str, float]:
    """The nodes that are kept out of the race, each with the seconds that are left."""
    if isinstance(store, FakeStore):
        return store.register.held(election)
    return read_held(store.client.run_one(HELD, store.keys.election(election), []))
