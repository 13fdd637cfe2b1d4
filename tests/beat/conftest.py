"""Fleets of beats, and beats in this process."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from examples.rabbitmq.server import rabbitmq_binary
from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet
from tests.support.local_beat import Bench
from tests.support.rabbitmq import RabbitMQ
from tests.support.services import must_have

NewOnRabbit = Callable[..., Fleet]


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    """Beats in this process, over an emptied Redis; they end with the test."""
    bench = Bench(redis_url)
    try:
        yield bench
    finally:
        bench.close()


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
