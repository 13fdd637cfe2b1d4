"""The master is killed or paused, Sentinel promotes a replica, and one leads there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.sentinel.watched import MASTER, Watched
from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

CONF = {
    "broker_transport_options": {"master_name": MASTER, "socket_timeout": 2},
    "leader_wait_replicas": 1,
    # Long enough for a busy machine: the replicas have 0.4 s to confirm a renewal.
    "leader_lease_duration": 6.0,
    "leader_renew_interval": 1.0,
    "leader_operation_timeout": 0.8,
    "leader_renew_retry_delay": 0.1,
}
_LONG = 500  # seconds; each wait has a deadline of its own


@pytest.fixture
def fleet(new_fleet: NewFleet, watched: Watched, redis_url: str) -> Fleet:
    """Two workers and two beats over the Sentinels; what they do is recorded elsewhere."""
    fleet = new_fleet(
        broker=watched.url,
        backend=redis_url,
        record=redis_url,
        conf=CONF,
        schedule={"tick": {"task": "lead", "every": 0.3, "args": ["tick"]}},
        probe=True,
    )
    fleet.look_for_leases_in(watched.master().url)
    fleet.workers("w1", "w2", pool="solo")
    fleet.beats("b1", "b2")
    fleet.saw("ran", "tick", count=3)
    return fleet


def ticks(fleet: Fleet) -> list[str]:
    """The due times of what ran, in the order it ran in."""
    return [each["headers"]["leader_tick"] for each in fleet.records("ran", "tick")]


def goes_on_at(fleet: Fleet, master: RedisServer, before: dict[str, Any]) -> None:
    """One worker and one beat lead at ``master``, and ticks run there."""
    fleet.look_for_leases_in(master.url)
    wait_until(
        lambda: len(ticks(fleet)) >= len(before["ticks"]) + 5, 90.0, "ticks after the failover"
    )
    for election in ("worker", "beat"):
        fleet.leader(election)
        assert int(fleet.record(election)["term"]) >= before[election]


def state_of(fleet: Fleet) -> dict[str, Any]:
    terms = {name: int(fleet.record(name)["term"]) for name in ("worker", "beat")}
    return {"ticks": ticks(fleet), **terms}


def judge(fleet: Fleet, before: dict[str, Any]) -> None:
    """Never two beliefs; no tick twice but one that Redis may have lost with its master."""
    fleet.assert_beliefs_never_overlapped()
    twice = [tick for tick, count in Counter(ticks(fleet)).items() if count > 1]
    print(f"{len(ticks(fleet))} ticks ran, twice: {twice}")
    # Redis answers before it replicates: what it did in its last moment may be lost.
    assert len(twice) <= 1, twice
    assert all(tick >= before["ticks"][-1] for tick in twice), (twice, before["ticks"][-1])
    beats = [process for process in fleet.processes if process.name.startswith("b")]
    assert all(beat.alive for beat in beats)
    assert all("Traceback" not in beat.log for beat in beats)


@pytest.mark.timeout(_LONG)
def test_after_the_master_was_killed_one_leads_at_the_next_and_ticks_go_on(
    fleet: Fleet, watched: Watched
) -> None:
    old, before = watched.master(), state_of(fleet)
    old.kill()
    goes_on_at(fleet, watched.next_master(old), before)
    judge(fleet, before)
    assert all(process.alive for process in fleet.processes)


@pytest.mark.timeout(_LONG)
def test_a_master_that_was_paused_and_wakes_up_as_nobody_s_gives_no_second_leader(
    fleet: Fleet, watched: Watched
) -> None:
    old, before = watched.master(), state_of(fleet)
    old.pause()
    new = watched.next_master(old)
    goes_on_at(fleet, new, before)
    old.resume()

    def follows() -> bool:
        with old.client() as client:
            return bool(client.info("replication")["role"] == "slave")

    # A Sentinel whose machine is busy believes nothing for half a minute (TILT).
    wait_until(follows, 240.0, "the old master to be made a replica")
    goes_on_at(fleet, new, {**before, "ticks": ticks(fleet)})
    judge(fleet, before)
