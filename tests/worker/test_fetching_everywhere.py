"""What a killed leader had fetched runs on the next one: over each way to a Redis, in each pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import VERSION

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet
from tests.support.redis_server import RedisServer
from tests.support.tls import tls_redis
from tests.support.waiting import wait_until


@pytest.fixture
def servers(redis_binary_or_skip: str) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def fails_over(fleet: Fleet, *arguments: str, fetched: int = 2, **config: Any) -> None:
    """Kill a leader that runs a body and has fetched others; a new one runs everything, once."""
    leader = fleet.worker("w1", *arguments, **config).says(" ready.")
    assert fleet.leader() is leader
    leader.says("consuming from celery.leader")
    other = fleet.worker("w2", *arguments, **config).says(" ready.")
    fleet.takes_part(other)
    sent = [fleet.app.tasks["fleet.hold_late"].delay("body")]
    fleet.saw("started", "body")
    names = ("lead", "lead_late", "lead")
    sent += [fleet.app.tasks[f"fleet.{name}"].delay("waits") for name in names]
    in_flight = fleet.key("in-flight", "worker")
    wait_until(lambda: fleet.leases.hlen(in_flight) == fetched, what="the others to be fetched")
    leader.kill()
    fleet.saw("started", "body", count=2)
    fleet.open("body")
    assert {result.get(timeout=60)["node"] for result in sent} == {other.node}
    assert len(fleet.records("ran", "waits")) == len(names)
    wait_until(lambda: not fleet.leases.exists(in_flight), what="everything to be settled")
    assert fleet.leases.zcard(f"{fleet.prefix}unacked_index") == 0
    assert other.alive


def test_over_a_unix_socket(
    new_fleet: NewFleet, servers: ExitStack, redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "redis.sock"
    server = servers.enter_context(RedisServer(("--unixsocket", str(path))))
    fleet = new_fleet(broker=server.url, backend=redis_url, record=redis_url)
    fails_over(fleet, fetched=4, broker=f"redis+socket://{path}")


def test_over_tls(
    new_fleet: NewFleet,
    servers: ExitStack,
    redis_url: str,
    tmp_path: Path,
    redis_binary_or_skip: str,
) -> None:
    server, url, trust = tls_redis(servers, tmp_path, redis_binary_or_skip)
    fleet = new_fleet(broker=server.url, backend=redis_url, record=redis_url)
    conf = {**fleet.config["conf"], "broker_use_ssl": trust}
    fails_over(fleet, fetched=4, broker=url, conf=conf)


def test_with_a_key_prefix(new_fleet: NewFleet, redis_url: str) -> None:
    transport = {"broker_transport_options": {"global_keyprefix": "mine:"}}
    fleet = new_fleet(conf=transport, record=redis_url.replace("/0", "/1"))
    fleet.prefix = "mine:"
    fails_over(fleet, fetched=4)


@pytest.mark.skipif(VERSION < (5, 7), reason="Celery has no --pool-start-method")
def test_in_a_pool_of_spawned_processes(fleet: Fleet) -> None:
    fails_over(fleet, "--pool-start-method=spawn", fetched=4)


def test_in_a_pool_that_is_scaled(fleet: Fleet) -> None:
    fails_over(fleet, "-c", "2", "--autoscale=2,1", fetched=4)


@pytest.mark.skipif(VERSION < (5, 7), reason="Celery has no worker_disable_prefetch")
def test_where_nothing_is_fetched_ahead(new_fleet: NewFleet) -> None:
    fails_over(new_fleet(conf={"worker_disable_prefetch": True}), fetched=1)


def test_a_leader_that_is_told_to_cancel_its_queue_goes_on_with_it(new_fleet: NewFleet) -> None:
    """Who must not lead is held, and does not cancel the queue of its leader-only tasks."""
    fleet = new_fleet(conf=LASTING)
    leader = fleet.worker("w1").says(" ready.")
    assert fleet.leader() is leader
    leader.says("worker: consuming from celery.leader")
    control, node = fleet.app.control, [leader.node]
    for order in (control.cancel_consumer, control.add_consumer, control.cancel_consumer):
        (reply,) = order("celery.leader", destination=node, reply=True)
        assert "ok" in reply[leader.node]
        assert fleet.app.tasks["fleet.lead"].delay("told").get(timeout=30)["node"] == leader.node
    in_flight = fleet.key("in-flight", "worker")
    wait_until(lambda: not fleet.redis.exists(in_flight), what="everything to be settled")
    assert len(fleet.records("ran", "told")) == 3
