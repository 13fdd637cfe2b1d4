"""A leader that is to go waits for its bodies, but not for all of them and not in silence."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from celery_leader import NotLeader
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.waiting import wait_until
from tests.worker.test_fetching import leading_worker
from tests.worker.test_slots import assert_none_overlap, intervals, is_idle, parked


def two_workers(fleet: Fleet, pool: str = "prefork", **config: Any) -> tuple[Process, Process]:
    """A leading worker and a follower."""
    leader = leading_worker(fleet, "-P", pool, "-c", "2", **config)
    follower = fleet.worker("w2", "-P", pool, "-c", "2", **config).says(" ready.")
    fleet.takes_part(follower)
    return leader, follower


def candidate(fleet: Fleet, node: str) -> dict[str, Any]:
    """What ``celery leader status`` says of a node."""
    done = fleet.run("leader", "status", "--election", "worker", "--json")
    (election,) = json.loads(done.stdout)["elections"]
    return next(each for each in election["candidates"] if each["node"] == node)


@pytest.mark.parametrize("order", ["resign", "transfer", "hold"])
def test_an_order_to_go_now_aborts_what_can_be_aborted(new_fleet: NewFleet, order: str) -> None:
    fleet = new_fleet(conf=LASTING)
    leader, follower = two_workers(fleet)
    result = fleet.app.tasks["fleet.abortable"].delay("a")
    fleet.saw("started", "a")
    node = {"resign": (), "transfer": (follower.node,), "hold": (leader.node,)}[order]
    done = fleet.run("leader", order, *node, "--election", "worker", "--now")
    assert done.returncode == 0, done.stdout + done.stderr
    fleet.saw("aborted", "a")
    with pytest.raises(NotLeader):
        result.get(timeout=30)
    assert fleet.leader() is follower


def test_an_order_to_go_now_waits_for_bodies_that_finish(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    leader, follower = two_workers(fleet)
    fleet.app.tasks["fleet.abortable"].delay("a")
    finishes = fleet.app.tasks["fleet.hold"].delay("b")
    fleet.saw("started", "a")
    fleet.saw("started", "b")
    done = fleet.run("leader", "resign", "--election", "worker", "--now", "--timeout", "1")
    assert done.returncode == 1
    assert fleet.record()["holder"] == leader.node
    assert fleet.records("aborted", "a") == []
    fleet.open("b")
    assert finishes.get(timeout=30)["leads"]
    fleet.saw("aborted", "a")
    assert fleet.leader() is follower


def test_an_order_waits_and_a_second_one_does_not(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    leader, follower = two_workers(fleet)
    result = fleet.app.tasks["fleet.abortable"].delay("a")
    fleet.saw("started", "a")
    assert fleet.run("leader", "resign", "--election", "worker", "--timeout", "0").returncode == 1
    leader.says("to step down")
    said = wait_until(
        lambda: candidate(fleet, leader.node)["waits_for"], what="the register to tell of it"
    )
    assert said == result.id
    assert candidate(fleet, leader.node)["steps_down_since"]
    shown = fleet.run("leader", "status", "--election", "worker").stdout
    assert f"{leader.node} has been stepping down for" in shown
    assert result.id in shown
    assert "has been stepping down" in fleet.run("leader", "doctor").stdout
    fleet.run("leader", "resign", "--election", "worker", "--now")
    fleet.saw("aborted", "a")
    assert fleet.leader() is follower
    wait_until(
        lambda: not candidate(fleet, leader.node)["steps_down_since"],
        what="the register to tell that it is over",
    )


def test_a_shutdown_aborts_after_the_grace_where_that_is_set(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    leader, follower = two_workers(fleet, conf={"leader_abort_grace": 1.0})
    result = fleet.app.tasks["fleet.abortable"].delay("a")
    fleet.saw("started", "a")
    leader.tell(signal.SIGTERM)
    with pytest.raises(NotLeader):
        result.get(timeout=30)
    assert fleet.leader() is follower
    assert leader.wait() == 0


@pytest.mark.parametrize("task", ["abortable", "hold"])
def test_a_shutdown_waits_for_the_others(new_fleet: NewFleet, task: str) -> None:
    """Without a grace for a body that can be aborted, and for one that finishes."""
    fleet = new_fleet(conf=LASTING)
    leader, follower = two_workers(fleet)
    result = fleet.app.tasks[f"fleet.{task}"].delay("a")
    fleet.saw("started", "a")
    leader.tell(signal.SIGTERM)
    leader.says("Warm shutdown")
    fleet.renewed(times=3)
    assert fleet.record()["holder"] == leader.node
    fleet.open("a")
    assert result.get(timeout=30)["leads"]
    assert leader.wait() == 0
    assert fleet.leader(other_than=leader) is follower


@pytest.mark.parametrize("task", ["one", "one_late"])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_shutdown_waits_for_no_long_body_whose_successors_know_of_it(
    new_fleet: NewFleet, task: str, pool: str
) -> None:
    fleet = new_fleet(limited=True)
    leader, follower = two_workers(fleet, pool)
    running = fleet.app.tasks[f"fleet.{task}"].delay("a")
    fleet.saw("started", "a")
    leader.tell(signal.SIGTERM)
    assert fleet.leader(other_than=leader) is follower
    # Others go on, and its successors wait for it, for longer than two leases.
    assert fleet.app.tasks["fleet.lead"].delay("other").get(timeout=30)["node"] == follower.node
    next_one = fleet.app.tasks[f"fleet.{task}"].delay("a")
    wait_until(lambda: parked(fleet) == 1, what="the next one to wait")
    for _ in range(3):
        fleet.outlives_its_lease()
    assert len(fleet.records("started", "a")) == 1
    assert "its process ends" in candidate(fleet, leader.node)["unfit"]
    fleet.open("a")
    assert running.get(timeout=30)["node"] == leader.node
    fleet.open("a")
    assert next_one.get(timeout=30)["node"] == follower.node
    assert leader.wait() == 0
    assert_none_overlap(intervals(fleet, "a"))
    wait_until(lambda: is_idle(fleet), what="all slots to be free")
    assert fleet.redis.hlen("unacked") == 0
