"""The fixtures that more than one folder of tests uses: servers, fleets, stores and apps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.lease_source import LeaseSource
from celery_leader.store.client import RedisClient
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.scripts import Keys
from examples.machine import how_to_get_redis_server
from examples.rabbitmq.server import rabbitmq_binary
from tests.support import ROOT
from tests.support import fleet as fleets
from tests.support.fleet import Fleet
from tests.support.rabbitmq import RabbitMQ
from tests.support.redis_server import RedisServer, redis_binary
from tests.support.services import must_have

PREFIX = "acme:"
SETTING = "broker_url"

MakeApp = Callable[..., Celery]
MakeStore = Callable[..., RedisLeaseStore]
NewFleet = Callable[..., Fleet]
NewOnRabbit = Callable[..., Fleet]
RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    """Show the ends of the logs of a fleet with a failure."""
    report = yield
    if report.failed:
        for fleet in fleets.LIVE:
            report.sections += [(f"log of {name}", text) for name, text in fleet.logs()]
    return report


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Undo what a test, or a library it uses, has done to the environment; Django sets even TZ."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)
        time.tzset()


@pytest.fixture(scope="session")
def real() -> None:
    """Tests and fixtures that start a server or a process ask for this; such tests are marked ``real``."""


@pytest.fixture
def python(real: None) -> RunPython:
    """Runs a Python with some arguments to its end."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def redis_binary_or_skip(real: None) -> str:
    """The redis-server to run; skips on a laptop that has none, fails in CI."""
    binary = redis_binary()
    must_have(binary, how_to_get_redis_server("test"))
    return binary or ""


@pytest.fixture(scope="session")
def redis_server(redis_binary_or_skip: str) -> Iterator[RedisServer]:
    """A real redis-server of this session, killed at its end."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of ``redis_server``, emptied."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def own_redis(redis_binary_or_skip: str) -> Iterator[RedisServer]:
    """A Redis that only this test uses, and may harm."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def new_fleet(redis_url: str, tmp_path: Path) -> Iterator[NewFleet]:
    """Makes fleets, by default over an emptied Redis; their processes end with the test."""
    with ExitStack() as stack:

        def new(broker: str = redis_url, **config: Any) -> Fleet:
            return stack.enter_context(Fleet(tmp_path, broker, **config))

        yield new


@pytest.fixture
def fleet(new_fleet: NewFleet) -> Fleet:
    """A fleet over an emptied Redis."""
    return new_fleet()


@pytest.fixture(scope="module")
def rabbitmq(real: None) -> Iterator[RabbitMQ]:
    """A RabbitMQ of these tests, which may be restarted."""
    must_have(rabbitmq_binary(), "there is no rabbitmq-server here")
    server = RabbitMQ()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def new_on_rabbit(new_fleet: NewFleet, rabbitmq: RabbitMQ, redis_url: str) -> NewOnRabbit:
    """Makes fleets whose broker is RabbitMQ; each has queues of its own."""

    def new(schedule: dict[str, Any], **conf: Any) -> Fleet:
        own = {"task_default_queue": f"queue-{uuid.uuid4().hex[:8]}", "leader_url": redis_url}
        conf = {"leader_lease_duration": 2.0, **own, **conf}
        fleet = new_fleet(schedule=schedule, conf=conf, backend=redis_url)
        fleet.config["broker"] = rabbitmq.url
        return fleet

    return new


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


@pytest.fixture
def make_app(real: None, request: pytest.FixtureRequest) -> Iterator[MakeApp]:
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
    runtimes = [runtime_of(app) for app in apps]
    # Who does not lead first: else one after the other is elected on the way out.
    runtimes.sort(
        key=lambda each: any(c.term() is not None for c in each.participation._candidates)
    )
    for runtime in runtimes:
        thread = runtime.participation._election_thread
        if thread is not None:
            for candidate in runtime.participation._candidates:
                thread.resign(candidate)
            thread.stop(0)
    for runtime in runtimes:
        thread, runtime.participation._election_thread = (
            runtime.participation._election_thread,
            None,
        )
        if thread is not None:
            thread.stop(10)
            thread.disown()  # its pipe: one process makes hundreds of them here, and no other does
