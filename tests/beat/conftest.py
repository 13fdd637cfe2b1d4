"""Fleets of beats, and beats in this process."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from examples.rabbitmq.server import rabbitmq_binary
from tests.beat.beats import BeatFleet
from tests.beat.local import Bench
from tests.beat.rabbitmq import RabbitMQ
from tests.fleet.conftest import pytest_runtest_makereport as pytest_runtest_makereport
from tests.services import must_have

NewFleet = Callable[..., BeatFleet]
NewOnRabbit = Callable[..., BeatFleet]


@pytest.fixture
def new_fleet(redis_url: str, tmp_path: Path) -> Iterator[NewFleet]:
    """Makes fleets, by default over an emptied Redis; their processes end with the test."""
    with ExitStack() as stack:

        def new(broker: str = redis_url, **config: Any) -> BeatFleet:
            return stack.enter_context(BeatFleet(tmp_path, broker, **config))

        yield new


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    """Beats in this process, over an emptied Redis; they end with the test."""
    bench = Bench(redis_url)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
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

    def new(schedule: dict[str, Any], **conf: Any) -> BeatFleet:
        own = {"task_default_queue": f"queue-{uuid.uuid4().hex[:8]}", "leader_url": redis_url}
        conf = {"leader_lease_duration": 2.0, **own, **conf}
        fleet = new_fleet(schedule=schedule, conf=conf, backend=redis_url)
        fleet.config["broker"] = rabbitmq.url
        return fleet

    return new
