"""A leader whose own work stands still gives up; one that is only slow, paused or going does not."""

from __future__ import annotations

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, QUICK, Fleet, Process
from tests.support.fleet_app.schedulers import STORE
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

#: A lease that would outlast the test, so that only the watchdog can end it.
WATCHED = {**LASTING, "leader_watchdog": 2.0}
STALLED = "stalled"


def stop_loop(fleet: Fleet, worker: Process) -> None:
    """Have the event loop of ``worker`` stand still until its gate is opened."""
    fleet.send("plain", worker.name, queue=worker.name)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_leader_whose_event_loop_stands_still_is_replaced_and_comes_back(
    new_fleet: NewFleet, pool: str
) -> None:
    fleet = new_fleet(conf=WATCHED)
    leader = fleet.worker("w1", "-P", pool, loop_stops_at="w1")
    leader.says(" ready.")
    assert fleet.leader() is leader
    term = int(fleet.record()["term"])
    follower = fleet.worker("w2")
    follower.says(" ready.")
    fleet.takes_part(follower)
    stop_loop(fleet, leader)
    leader.says("the event loop has stood still for more than 2 s")
    assert fleet.leader(other_than=leader) is follower
    leader.says(f"deposed, term {term}, node {leader.node}: stalled")
    fleet.send("lead", "while it stands")
    assert fleet.saw("ran", "while it stands")[0]["node"] == follower.node
    # It does not campaign while it stands: a handover passes it by.
    assert follower.terminate() == 0
    third = fleet.worker("w3")
    third.says(" ready.")
    assert fleet.leader() is third
    fleet.open("w1")
    leader.says("the event loop moves again")
    assert third.terminate() == 0
    assert fleet.leader() is leader
    fleet.send("lead", "after it moved")
    assert fleet.saw("ran", "after it moved")[0]["node"] == leader.node


def test_a_body_that_was_running_is_told_when_its_event_loop_stands_still(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=WATCHED, loop_stops_at="w1")
    (leader,) = fleet.workers("w1")
    fleet.send("abortable", "body")
    fleet.saw("started", "body")
    stop_loop(fleet, leader)
    fleet.saw("aborted", "body")
    fleet.open("w1")


def test_without_a_watchdog_a_leader_whose_event_loop_stands_still_leads_on(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(
        conf={**QUICK, "leader_lease_duration": 6.0, "leader_watchdog": 0}, loop_stops_at="w1"
    )
    (leader,) = fleet.workers("w1")
    stop_loop(fleet, leader)
    fleet.outlives_its_lease()
    assert STALLED not in leader.log
    fleet.open("w1")


def test_the_loop_of_a_solo_pool_may_stand_for_as_long_as_a_body_runs(new_fleet: NewFleet) -> None:
    conf = {**QUICK, "leader_lease_duration": 6.0, "leader_watchdog": 1.0}
    fleet = new_fleet(conf=conf)
    (leader,) = fleet.workers("w1", pool="solo")
    fleet.send("hold", "long")
    fleet.saw("started", "long")
    fleet.outlives_its_lease()
    assert STALLED not in leader.log
    fleet.open("long")
    fleet.saw("finished", "long")


def test_a_warm_shutdown_that_takes_long_is_not_taken_for_a_loop_that_stands(
    new_fleet: NewFleet,
) -> None:
    conf = {**QUICK, "leader_lease_duration": 6.0, "leader_watchdog": 1.0}
    fleet = new_fleet(conf=conf)
    leader, _ = fleet.workers("w1", "w2")
    leader = fleet.leader()
    fleet.send("hold", "long")
    fleet.saw("started", "long")
    leader.tell(15)
    leader.says("Warm shutdown")
    fleet.outlives_its_lease()
    fleet.open("long")
    fleet.saw("finished", "long")
    assert leader.wait() == 0
    assert STALLED not in leader.log
    assert "moves again" not in leader.log


def test_a_worker_that_is_paused_for_long_is_not_taken_for_one_whose_loop_stands(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=WATCHED)
    (leader,) = fleet.workers("w1")
    term = fleet.record()["term"]
    seconds, _ = fleet.redis.time()
    leader.freeze()
    wait_until(lambda: fleet.redis.time()[0] > seconds + 6, what="thrice its patience to pass")
    leader.thaw()
    fleet.renewed(1)
    fleet.send("lead", "after the pause")
    assert fleet.saw("ran", "after the pause")[0]["term"] == int(term)
    assert STALLED not in leader.log


def test_a_worker_that_reconnects_for_long_is_not_taken_for_one_whose_loop_stands(
    new_fleet: NewFleet, redis_url: str, redis_server: RedisServer
) -> None:
    with Proxy(redis_server.port) as proxy:
        fleet = new_fleet(conf={**WATCHED, "leader_url": redis_url})
        leader = fleet.worker("w1", broker=proxy.url)
        leader.says(" ready.")
        fleet.leader()
        proxy.refuse()
        leader.says("Trying again in 6.00 seconds")
        fleet.renewed(2)
        assert STALLED not in leader.log
        proxy.restore()
        fleet.send("lead", "reconnected")
        fleet.saw("ran", "reconnected")
        assert STALLED not in leader.log


SCHEDULER = ("-S", "tests.support.fleet_app.schedulers:LeaderStoredScheduler")
SCHEDULE = {"often": {"task": "plain", "every": 0.2}}


def test_a_beat_whose_store_hangs_is_replaced_and_comes_back(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=WATCHED, schedule=SCHEDULE)
    hung = fleet.beat("b1", *SCHEDULER)
    assert fleet.leader("beat") is hung
    fleet.arrived(2)
    other = fleet.beat("b2", "-S", "leader")
    fleet.takes_part(other, "beat")
    fleet.redis.set(STORE, "yes")
    hung.says("the beat has stood still for more than 2 s")
    hung.says(f"node {hung.node}: stalled")
    assert fleet.leader("beat") is other
    fleet.arrived(len(fleet.messages()) + 2)
    fleet.redis.delete(STORE)
    fleet.open("store")
    hung.says("the beat moves again")
    assert other.terminate() == 0
    assert fleet.leader("beat") is hung
    fleet.arrived(len(fleet.messages()) + 2)


def test_a_beat_that_rests_between_ticks_or_follows_is_not_taken_for_one_that_stands(
    new_fleet: NewFleet,
) -> None:
    conf = {**QUICK, "leader_lease_duration": 6.0, "leader_watchdog": 1.0}
    fleet = new_fleet(conf=conf, schedule={"rare": {"task": "plain", "every": 3600.0}})
    beats = fleet.beats("b1", "b2")
    fleet.outlives_its_lease("beat")
    for beat in beats:
        assert "stood still" not in beat.log


def test_a_beat_with_many_entries_due_at_once_is_not_taken_for_one_that_stands(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf={**WATCHED, "leader_watchdog": 5.0}, entries=10_000)
    (beat,) = fleet.beats("b1")
    fleet.arrived(3000, timeout=100)
    assert "stood still" not in beat.log
    assert len(fleet.history("beat")) == 1
