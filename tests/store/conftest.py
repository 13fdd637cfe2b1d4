"""Stores over memory and over real Redis, and apps whose elections end with their test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from celery_leader.core.lease import LeaseStore
from celery_leader.runtime.leadership import leadership_of
from celery_leader.runtime.lease_source import LeaseSource
from celery_leader.store.client import RedisClient
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.scripts import Keys
from tests.fake_store import FakeStore
from tests.redis_process import RedisServer

PREFIX = "acme:"
SETTING = "broker_url"

MakeApp = Callable[..., Celery]
MakeStore = Callable[..., RedisLeaseStore]


@pytest.fixture
def make_store(redis_url: str) -> Iterator[MakeStore]:
    """Makes Redis stores the way an app does, each with a connection of its own."""
    made: list[RedisLeaseStore] = []

    def make(
        url: str = redis_url,
        *,
        prefix: str = "",
        namespace: str = "celery",
        operation_timeout: float = 10.0,
        **options: Any,
    ) -> RedisLeaseStore:
        source = LeaseSource(Connection(url), setting=SETTING, operation_timeout=operation_timeout)
        client = RedisClient(source.connect, setting=SETTING, operation_timeout=operation_timeout)
        store = RedisLeaseStore(client, Keys(namespace, prefix), **options)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture(params=["memory", "redis", "redis with a key prefix"])
def store(request: pytest.FixtureRequest) -> LeaseStore:
    """Each kind of store there is."""
    if request.param == "memory":
        return FakeStore(time.time)
    make: MakeStore = request.getfixturevalue("make_store")
    return make(prefix=PREFIX if "prefix" in request.param else "")


@pytest.fixture
def wake() -> Iterator[Wake]:
    """A file descriptor that ends a wait for announcements."""
    pipe = Wake()
    yield pipe
    pipe.close()


class Wake:
    """The runner's pipe."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()

    def up(self) -> None:
        """Make ``fd`` readable."""
        os.write(self._write, b"!")

    def close(self) -> None:
        """Drop both ends."""
        os.close(self.fd)
        os.close(self._write)


@pytest.fixture
def make_app(request: pytest.FixtureRequest) -> Iterator[MakeApp]:
    """Makes Celery apps of their own, and ends their election threads after the test."""
    apps: list[Celery] = []

    def make(broker: str | None = None, **conf: Any) -> Celery:
        if broker is None:
            broker = request.getfixturevalue("redis_url")
        app = Celery(f"project{len(apps)}", broker=broker, set_as_current=False)
        app.conf.update(conf)
        apps.append(app)
        return app

    yield make
    leaderships = [leadership_of(app) for app in apps]
    # Who does not lead first: else one after the other is elected on the way out.
    leaderships.sort(key=lambda each: any(c.term() is not None for c in each._campaigns))
    for leadership in leaderships:
        runner = leadership._runner
        if runner is not None:
            for campaign in leadership._campaigns:
                runner.resign(campaign)
            runner.stop(0)
    for leadership in leaderships:
        runner, leadership._runner = leadership._runner, None
        if runner is not None:
            runner.stop(10)
            runner.disown()  # its pipe: one process makes hundreds of them here, and no other does


@pytest.fixture
def own_redis(redis_binary_or_skip: str) -> Iterator[RedisServer]:
    """A Redis that only this test uses, and may harm."""
    with RedisServer() as server:
        yield server
