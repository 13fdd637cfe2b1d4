"""What a task body is told about leadership, in every pool Celery comes with."""

from __future__ import annotations

import signal

import pytest

from tests.fleet.conftest import NewFleet
from tests.fleet.fleet import Fleet
from tests.waiting import wait_until

POOLS = {
    "prefork": ("-P", "prefork", "-c", "2"),
    "prefork, a process per task": ("-P", "prefork", "-c", "1", "--max-tasks-per-child=1"),
    "prefork, autoscaled": ("-P", "prefork", "--autoscale=2,1"),
    "threads": ("-P", "threads", "-c", "2"),
    "solo": ("-P", "solo"),
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_body_knows_the_term_it_runs_in_and_asking_costs_no_command(
    fleet: Fleet, pool: str
) -> None:
    leader = fleet.worker("w1", *POOLS[pool]).says(" ready.")
    assert fleet.leader() is leader
    leader.says("consuming from celery.leader")
    term = fleet.history()[-1].term
    pids = set()
    for _ in range(2):
        seen = fleet.send("lead").get(timeout=30)
        assert (seen["leads"], seen["term"], seen["term_after"]) == (True, term, term)
        pids.add(seen["pid"])
    if pool == "prefork, a process per task":
        assert len(pids) == 2
        return  # Celery takes seconds for the next process
    asked = fleet.send("lead_ask_often", 20_000).get(timeout=30)
    assert asked["answers"] == [[True, term]]
    assert asked["commands"] < 1_000
    in_main = pool in ("threads", "solo")
    assert (leader.pid in pids) == in_main


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_body_notices_when_its_worker_stops_and_starts_leading(fleet: Fleet, pool: str) -> None:
    first = fleet.worker("w1", *POOLS[pool]).says(" ready.")
    assert fleet.leader() is first
    second = fleet.worker("w2", *POOLS[pool]).says(" ready.")
    fleet.takes_part(second)
    seen = fleet.send("plain", queue="w2").get(timeout=30)
    assert (seen["leads"], seen["term"]) == (False, None)
    first.freeze()
    assert fleet.leader(other_than=first) is second
    seen = fleet.send("plain", queue="w2").get(timeout=30)
    assert (seen["leads"], seen["term"]) == (True, fleet.history()[-1].term)
    first.thaw()
    seen = fleet.send("plain", queue="w1").get(timeout=30)
    assert (seen["leads"], seen["term"]) == (False, None)


def test_solo_keeps_its_lease_while_a_body_blocks_the_worker(fleet: Fleet) -> None:
    leader = fleet.worker("w1", "-P", "solo").says(" ready.")
    assert fleet.leader() is leader
    other = fleet.worker("w2", "-P", "solo").says(" ready.")
    fleet.takes_part(other)
    hold = fleet.send("hold", "blocks", queue="w1")
    fleet.saw("started", "blocks")
    assert fleet.outlives_its_lease()["holder"] == leader.node
    fleet.open("blocks")
    seen = hold.get(timeout=30)
    assert (seen["node"], seen["leads"]) == (leader.node, True)
    assert len(fleet.history()) == 1


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_warm_shutdown_hands_over_after_the_body_in_every_pool(fleet: Fleet, pool: str) -> None:
    leader = fleet.worker("w1", *POOLS[pool]).says(" ready.")
    assert fleet.leader() is leader
    other = fleet.worker("w2", *POOLS[pool]).says(" ready.")
    fleet.takes_part(other)
    hold = fleet.send("hold", "last", queue="w1")
    fleet.saw("started", "last")
    leader.tell(signal.SIGTERM)
    leader.says("Warm shutdown")
    fleet.renewed(1)
    fleet.open("last")
    assert hold.get(timeout=30)["node"] == leader.node
    leader.wait()
    assert fleet.leader() is other
    _, resigned, _ = fleet.history()
    (finished,) = fleet.records("finished", "last")
    assert resigned.kind == "resigned"
    assert finished["at"] <= resigned.at + 1000
    seen = fleet.send("lead").get(timeout=30)
    assert (seen["node"], seen["leads"]) == (other.node, True)


def test_a_killed_pool_process_is_replaced_by_one_that_knows(fleet: Fleet) -> None:
    leader = fleet.worker("w1").says(" ready.")
    assert fleet.leader() is leader
    fleet.send("hold", "killed")
    (started,) = fleet.saw("started", "killed")
    leader.kill_child(started["pid"])
    seen = fleet.send("lead").get(timeout=30)
    assert seen["pid"] != started["pid"]
    assert (seen["leads"], seen["term"]) == (True, fleet.history()[-1].term)
    assert len(fleet.history()) == 1


def test_an_embedded_beat_and_its_worker_elect_apart(new_fleet: NewFleet) -> None:
    schedule = {"tick": {"task": "lead", "every": 0.3, "args": ["tick"]}}
    fleet = new_fleet(schedule=schedule)
    arguments = ("-B", "--scheduler", "leader")
    first = fleet.worker("w1", *arguments).says(" ready.")
    assert fleet.leader() is first
    second = fleet.worker("w2", *arguments).says(" ready.")
    fleet.takes_part(second)
    wait_until(lambda: len(fleet.redis.zrange(fleet.key("candidates", "beat"), 0, -1)) == 2)
    ran = fleet.saw("ran", "tick", count=4)
    assert {seen["node"] for seen in ran} == {first.node}
    ticks = [seen["headers"]["leader_tick"] for seen in ran]
    assert len(set(ticks)) == len(ticks)
    first.terminate()
    assert fleet.leader() is second
    fleet.saw("ran", "tick", count=len(fleet.records("ran", "tick")) + 3)
    ticks = [seen["headers"]["leader_tick"] for seen in fleet.records("ran", "tick")]
    assert len(set(ticks)) == len(ticks)


def test_an_embedded_beat_ends_with_a_worker_that_is_killed(new_fleet: NewFleet) -> None:
    fleet = new_fleet(schedule={"tick": {"task": "plain", "every": 0.3, "args": ["tick"]}})
    first = fleet.worker("w1", "-B", "--scheduler", "leader").says(" ready.")
    fleet.saw("ran", "tick")
    holder = wait_until(lambda: fleet.record("beat").get("holder"), what="a leading beat")
    second = fleet.worker("w2", "-B", "--scheduler", "leader").says(" ready.")
    wait_until(lambda: len(fleet.redis.zrange(fleet.key("candidates", "beat"), 0, -1)) == 2)
    first.tell(signal.SIGKILL)  # the main process alone
    wait_until(
        lambda: fleet.record("beat").get("holder") not in (None, holder), what="another beat"
    )
    first.says("the worker this beat belongs to is gone")
    assert second.alive
    assert fleet.leader() is second
