"""Signals in real workers and beats, with receivers that fail and one that hangs."""

from __future__ import annotations

import json

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, QUICK, Fleet


def test_workers_signal_elections_although_receivers_fail_and_hang(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING, receivers=True)
    workers = fleet.workers("w1", "w2")
    leader = fleet.leader()
    follower = next(worker for worker in workers if worker is not leader)
    term = int(fleet.record()["term"])
    mine = {"election": "worker", "term": term}
    fleet.signalled("leader_elected", **mine, node=leader.node, pid=leader.pid)
    for worker in workers:
        fleet.signalled("leader_changed", **mine, node=worker.node, leader=leader.node)
    assert leader.terminate() == 0, "a receiver that hangs does not keep a worker from ending"
    told = fleet.signalled("leader_deposed", **mine, node=leader.node)[0]
    assert (told["reason"], told["sudden"]) == ("resigned", False)
    assert told["led_for"] > 0
    fleet.signalled("leader_elected", election="worker", node=follower.node)
    assert "a receiver's own mistake" in leader.log


def test_a_leader_with_a_receiver_that_hangs_renews_and_works_on(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={**QUICK, "leader_lease_duration": 3.0}, receivers=True)
    (leader,) = fleet.workers("w1")
    leader.says("worker: elected, term")
    leader.freeze()
    fleet.wait_without_leader()
    leader.thaw()
    fleet.signalled("leader_deposed", election="worker", node=leader.node, sudden=True)
    assert fleet.leader() is leader
    fleet.outlives_its_lease()
    fleet.send("lead", "while a receiver hangs")
    fleet.saw("ran", "while a receiver hangs")


def test_a_forwarded_and_a_skipped_task_are_signalled_where_that_happens(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING, receivers=True)
    workers = fleet.workers("w1", "w2")
    leader = fleet.leader()
    follower = next(worker for worker in workers if worker is not leader)
    forwarded = fleet.send("lead", "forwarded", queue=follower.name)
    skipped = fleet.send("skippable", "skipped", queue=follower.name)
    fleet.signalled(
        "task_forwarded",
        task="fleet.lead",
        task_id=forwarded.id,
        node=follower.node,
        election="worker",
        queue="celery.leader",
    )
    fleet.signalled(
        "task_skipped",
        task="fleet.skippable",
        task_id=skipped.id,
        node=follower.node,
        election="worker",
        by="receiver",
    )
    sent = fleet.send("send", "sent_by_leader", "not sent", queue=follower.name)
    task_id = sent.get(timeout=30)["sent"]
    told = fleet.signalled("task_skipped", task_id=task_id, by="sender", node=follower.node)[0]
    assert told["pid"] != follower.pid, "it is the pool process that sends"


def test_a_beat_signals_its_election_and_what_redis_refused(fleet: Fleet) -> None:
    schedule = {"often": {"task": "plain", "every": 0.05}}
    beat = fleet.beat("b1", receivers=True, schedule=schedule)
    fleet.signalled("leader_elected", election="beat", node=beat.node)
    fleet.arrived(2)
    # As if another had been elected: the next dispatch is refused by Redis.
    fleet.redis.hset(fleet.key("election", "beat"), "nonce", "another's")
    told = fleet.signalled("dispatch_refused", election="beat", node=beat.node)[0]
    assert told["entry"] == "often"
    assert told["reason"]
    fleet.signalled("leader_deposed", election="beat", node=beat.node, reason="lost")


def test_a_log_in_json_has_the_facts_of_each_change_as_fields(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING, json_log=True)
    leader = fleet.worker("w1")
    leader.says(' ready."')
    assert fleet.leader() is leader
    follower = fleet.worker("w2")
    follower.says("follows")
    assert leader.terminate() == 0
    term = int(fleet.record()["term"])

    def changes(log: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in log.splitlines() if line.startswith('{"level"')]
        return [line for line in lines if line.get("leader_election") == "worker"]

    elected, deposed = changes(leader.log)
    assert (elected["leader_node"], elected["leader_term"]) == (leader.node, deposed["leader_term"])
    assert deposed["leader_reason"] == "resigned"
    assert isinstance(deposed["leader_led_for"], float)
    followed, succeeded = changes(follower.log)
    assert followed["leader_followed"] == leader.node
    assert succeeded["leader_term"] == term
