"""A broker behind Sentinel: the leases follow the master, as the messages do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.fleet.conftest import NewFleet
from tests.redis_process import RedisServer, free_port
from tests.waiting import wait_until

MASTER = "fleet"


@pytest.fixture
def replica(own_redis: RedisServer) -> Iterator[RedisServer]:
    """A replica of ``own_redis``, which is the master."""
    with RedisServer(("--replicaof", "127.0.0.1", str(own_redis.port))) as replica:
        yield replica


@pytest.fixture
def sentinel(
    redis_binary_or_skip: str, own_redis: RedisServer, replica: RedisServer, tmp_path: Path
) -> Iterator[int]:
    """The port of a Sentinel that watches the two, and promotes the replica by itself."""
    port = free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor {MASTER} 127.0.0.1 {own_redis.port} 1\n"
        f"sentinel down-after-milliseconds {MASTER} 1000\n"
        f"sentinel failover-timeout {MASTER} 3000\n"
    )
    with (tmp_path / "sentinel.log").open("wb") as log:
        process = subprocess.Popen(
            [redis_binary_or_skip, str(configuration), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with redis.Redis(port=port) as client:

            def knows_the_replica() -> bool:
                try:
                    return len(client.sentinel_slaves(MASTER)) == 1
                except redis.RedisError:
                    return False

            wait_until(knows_the_replica, what="Sentinel to know the replica")
        yield port
    finally:
        process.kill()
        process.wait()


def test_after_a_failover_the_leaders_lead_on_at_the_new_master(
    new_fleet: NewFleet,
    redis_url: str,
    own_redis: RedisServer,
    replica: RedisServer,
    sentinel: int,
) -> None:
    fleet = new_fleet(
        broker=f"sentinel://127.0.0.1:{sentinel}",
        backend=redis_url,
        record=redis_url,
        conf={"broker_transport_options": {"master_name": MASTER, "socket_timeout": 2}},
        schedule={"tick": {"task": "lead", "every": 0.3, "args": ["tick"]}},
        probe=True,
    )
    fleet.look_for_leases_in(own_redis.url)
    fleet.workers("w1", "w2", pool="solo")
    fleet.beats("b1", "b2")
    fleet.saw("ran", "tick", count=2)
    before = {name: int(fleet.record(name)["term"]) for name in ("worker", "beat")}

    own_redis.kill()
    fleet.look_for_leases_in(replica.url)
    fleet.saw("ran", "tick", count=len(fleet.records("ran", "tick")) + 3)
    for election, term in before.items():
        fleet.leader(election)
        assert int(fleet.record(election)["term"]) >= term
    fleet.assert_beliefs_never_overlapped()
    assert all(process.alive for process in fleet.processes)
    assert all("Traceback" not in process.log for process in fleet.processes if "b" in process.name)
