"""The leader's work fails over with the lead where the broker is not fetched from: on RabbitMQ.

There the broker itself gives back what a worker had, as soon as its connection ends.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.support.fixtures import NewOnRabbit
from tests.support.fleet import QUICK, Fleet, Process
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ

KINDS: dict[str, dict[str, Any]] = {
    "classic": {},
    "quorum": {
        "task_default_queue_type": "quorum",
        "task_create_missing_queue_type": "quorum",
        "worker_detect_quorum_queues": True,
    },
}

NewPair = Callable[..., tuple[Fleet, Process, Process]]


@pytest.fixture(params=KINDS)
def new_pair(request: pytest.FixtureRequest, new_on_rabbit: NewOnRabbit) -> NewPair:
    """Makes a fleet, and in it a worker that leads and one that follows."""

    def new(*arguments: str, **conf: Any) -> tuple[Fleet, Process, Process]:
        fleet = new_on_rabbit({}, **QUICK, **KINDS[request.param], **conf)
        queue = fleet.config["conf"]["task_default_queue"]
        leader = fleet.worker("w1", "-Q", queue, *arguments).says(" ready.")
        assert fleet.leader() is leader
        leader.says(f"consuming from {queue}.leader")
        follower = fleet.worker("w2", "-Q", queue, *arguments).says(" ready.")
        fleet.takes_part(follower)
        return fleet, leader, follower

    return new


def test_what_a_killed_leader_had_in_hand_runs_on_the_next_one(new_pair: NewPair) -> None:
    fleet, leader, follower = new_pair()
    running = fleet.app.tasks["fleet.hold_late"].delay("running")
    fleet.saw("started", "running")
    fetched = [fleet.app.tasks["fleet.lead_late"].delay("fetched") for _ in range(3)]
    for result in fetched:
        leader.says(f"[{result.id}] received")
    leader.kill()
    sent = [fleet.app.tasks["fleet.lead"].delay("after the kill") for _ in range(5)]
    fleet.open("running")
    seen = [result.get(timeout=30) for result in (running, *fetched, *sent)]
    assert {each["node"] for each in seen} == {follower.node}
    assert len(fleet.records("started", "running")) == 2
    assert len(fleet.records("ran", "fetched")) == 3
    assert len(fleet.records("ran", "after the kill")) == 5


def test_with_early_acknowledgement_the_body_that_ran_is_gone_and_nothing_else(
    new_pair: NewPair,
) -> None:
    fleet, leader, follower = new_pair()
    fleet.app.tasks["fleet.hold"].delay("running")
    fleet.saw("started", "running")
    fetched = [fleet.app.tasks["fleet.lead"].delay("fetched") for _ in range(3)]
    for result in fetched:
        leader.says(f"[{result.id}] received")
    leader.kill()
    assert {each.get(timeout=30)["node"] for each in fetched} == {follower.node}
    assert fleet.app.tasks["fleet.lead"].delay("last").get(timeout=30)["node"] == follower.node
    assert len(fleet.records("started", "running")) == 1
    assert len(fleet.records("ran", "fetched")) == 3


def test_what_waited_for_its_time_with_a_killed_leader_runs_on_the_next_one_in_time(
    new_pair: NewPair,
) -> None:
    fleet, leader, follower = new_pair()
    due = datetime.now(timezone.utc) + timedelta(seconds=6)
    later = fleet.app.tasks["fleet.lead"].apply_async(("later",), eta=due)
    leader.says(f"[{later.id}] received")
    leader.kill()
    assert later.get(timeout=30)["node"] == follower.node
    (ran,) = fleet.records("ran", "later")
    assert ran["at"] >= 1e6 * due.timestamp()


def test_a_long_body_is_not_delivered_again_while_its_leader_lives(new_pair: NewPair) -> None:
    fleet, leader, _ = new_pair("-c", "2")
    long = fleet.app.tasks["fleet.hold_late"].delay("long")
    fleet.saw("started", "long")
    fleet.outlives_its_lease()
    assert fleet.app.tasks["fleet.lead"].delay("beside").get(timeout=30)["node"] == leader.node
    fleet.open("long")
    assert long.get(timeout=30)["node"] == leader.node
    assert len(fleet.records("started", "long")) == 1


def test_a_leader_that_steps_down_from_a_long_body_keeps_it_and_leaves_the_rest(
    new_pair: NewPair,
) -> None:
    fleet, leader, follower = new_pair("-c", "1")
    long = fleet.app.tasks["fleet.hold_late"].delay("long")
    fleet.saw("started", "long")
    fetched = [fleet.app.tasks["fleet.lead_late"].delay("fetched") for _ in range(3)]
    for result in fetched:
        leader.says(f"[{result.id}] received")
    assert fleet.run("leader", "resign", "--election", "worker", "--timeout", "0").returncode
    fleet.outlives_its_lease()
    assert fleet.leader() is leader
    fleet.open("long")
    assert long.get(timeout=30)["node"] == leader.node
    assert fleet.leader(other_than=leader) is follower
    for result in fetched:
        result.get(timeout=30)
    assert len(fleet.records("started", "long")) == 1
    assert len(fleet.records("ran", "fetched")) == 3


def test_a_warm_shutdown_keeps_what_runs_and_gives_the_rest_back(new_pair: NewPair) -> None:
    fleet, leader, follower = new_pair("-c", "1")
    running = fleet.app.tasks["fleet.hold_late"].delay("running")
    fleet.saw("started", "running")
    fetched = [fleet.app.tasks["fleet.lead_late"].delay("fetched") for _ in range(3)]
    for result in fetched:
        leader.says(f"[{result.id}] received")
    leader.tell(15)
    fleet.open("running")
    assert leader.wait() == 0
    assert running.get(timeout=30)["node"] == leader.node
    assert {each.get(timeout=30)["node"] for each in fetched} == {follower.node}
    assert len(fleet.records("started", "running")) == 1
    assert len(fleet.records("ran", "fetched")) == 3


def test_what_an_old_leader_does_not_know_waits_for_one_that_does(
    new_on_rabbit: NewOnRabbit,
) -> None:
    fleet = new_on_rabbit({}, leader_lease_duration=300.0)
    queue = fleet.config["conf"]["task_default_queue"]
    old = fleet.worker("old", "-P", "solo", "-Q", queue, unknown=["lead"])
    old.says(f"consuming from {queue}.leader")
    lead = fleet.app.tasks["fleet.lead"]
    sent = [lead.apply_async(("new",), queue=to) for to in 15 * (None, queue)]
    # Four at a time and a second each, these would keep it waiting for seven seconds.
    assert fleet.app.tasks["fleet.lead_late"].delay("known").get(timeout=5)
    new = fleet.worker("new", "-P", "solo", "-Q", queue).says(" ready.")
    fleet.takes_part(new)
    assert old.terminate() == 0
    assert [result.get(timeout=30)["node"] for result in sent] == [new.node] * 30
    assert len(fleet.records("ran", "new")) == 30
    assert "Received unregistered task" not in old.log


def test_what_a_leader_had_that_fell_silent_comes_back_after_some_heartbeats(
    new_on_rabbit: NewOnRabbit, rabbitmq: RabbitMQ
) -> None:
    fleet = new_on_rabbit({}, **{**QUICK, "leader_lease_duration": 3.0}, broker_heartbeat=4)
    queue = fleet.config["conf"]["task_default_queue"]
    port = urllib.parse.urlsplit(rabbitmq.url).port
    assert port is not None
    with Proxy(port) as proxy:
        behind = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
        leader = fleet.worker("w1", "-Q", queue, broker=behind).says("consuming from")
        assert fleet.leader() is leader
        follower = fleet.worker("w2", "-Q", queue).says(" ready.")
        fleet.takes_part(follower)
        running = fleet.app.tasks["fleet.hold_late"].delay("running")
        fleet.saw("started", "running")
        fetched = [fleet.app.tasks["fleet.lead_late"].delay("fetched") for _ in range(3)]
        for result in fetched:
            leader.says(f"[{result.id}] received")
        cut_at = fleet.moment()
        proxy.stall()
        assert fleet.leader(other_than=leader) is follower
        _, again = fleet.saw("started", "running", count=2)
        assert again["node"] == follower.node
        # RabbitMQ looks once a heartbeat, and forgives one silence.
        assert again["at"] / 1e6 - cut_at < 3 * 4 + 10
        for _ in range(2):
            fleet.open("running")
        running.get(timeout=30)
        assert {each.get(timeout=30)["node"] for each in fetched} == {follower.node}
