"""Remote control: nodes are asked how they stand, and the one that leads is told to step down."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from celery import beat as stock

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet
from tests.support.waiting import wait_until

SCHEDULE = {"often": {"task": "plain", "every": 0.2}}


def answers(fleet: Fleet, *command: str) -> dict[str, Any]:
    """What the nodes answer to a ``celery`` command, by node."""
    done = fleet.run(*command, "--json", "--timeout", "5")
    found: dict[str, Any] = {}
    if done.returncode == 0:
        found = json.loads(done.stdout.splitlines()[-1])
    return found


def test_inspect_leader_says_how_each_worker_stands(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={**LASTING, "leader_priority": 3})
    workers = fleet.workers("w1", "w2")
    leader = fleet.leader()
    follower = next(worker for worker in workers if worker is not leader)
    term = int(fleet.record()["term"])
    found: dict[str, Any] = {}

    def both() -> bool:
        nonlocal found
        found = answers(fleet, "inspect", "leader")
        return {leader.node, follower.node} <= found.keys()

    wait_until(both, timeout=120, what="two answers")
    leading, following = found[leader.node]["worker"], found[follower.node]["worker"]
    assert (leading["leading"], leading["term"], leading["leader"]) == (True, term, leader.node)
    assert (following["leading"], following["term"]) == (False, None)
    assert (following["leader"], following["leader_term"]) == (leader.node, term)
    for facts in (leading, following):
        assert facts["priority"] == 3
        assert facts["eligible"] is True
        assert facts["giving_way"] is False
        assert facts["last_contact"] >= 0
    # Celery's own text output knows them too.
    done = fleet.run("inspect", "leader", "--timeout", "5")
    assert "leader_term" in done.stdout, done


def test_control_leader_resign_waits_for_a_body_and_then_another_leads(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    fleet.workers("w1", "w2")
    leader = fleet.leader()
    body = fleet.send("hold", "body")
    fleet.saw("started", "body")
    done = fleet.run("control", "leader_resign", "--timeout", "5", "-d", leader.node)
    assert "gives worker up" in done.stdout, done
    leader.says("to step down")
    assert fleet.leader() is leader
    found = fleet.app.control.inspect([leader.node], timeout=10, limit=1)._request("leader")
    standing = found[leader.node]["worker"]
    assert standing["giving_way"] is True
    assert standing["giving_way_for"] >= 0
    assert standing["waits_for"] == [body.id]
    fleet.open("body")
    other = fleet.leader(other_than=leader)
    fleet.saw("finished", "body")
    assert leader.alive
    fleet.send("lead", "after")
    assert fleet.saw("ran", "after")[0]["node"] == other.node
    assert leader.log.count(": resigned, after") == 1


def test_control_leader_transfer_names_the_next_leader_and_refuses_an_unknown_one(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    workers = fleet.workers("w1", "w2", "w3")
    leader = fleet.leader()
    chosen = next(worker for worker in workers if worker is not leader)

    def said(*arguments: str) -> str:
        done = fleet.run("control", "leader_transfer", "--timeout", "5", *arguments)
        return done.stdout + done.stderr

    assert "nobody@nowhere" in said("nobody@nowhere")
    assert "name the node" in said()
    assert "no election" in said(chosen.node, "no-such")
    assert fleet.leader() is leader
    answer = said(chosen.node)
    assert f"gives worker up to {chosen.node}" in answer
    assert "does not lead worker" in answer, "the followers say so"
    assert fleet.leader(other_than=leader) is chosen
    leader.says(": transferred, after")


@pytest.mark.skipif(
    not hasattr(stock, "BeatPidbox"), reason="beats have a mailbox from Celery 5.7 on"
)
def test_beats_answer_too_where_celerys_own_mailbox_for_them_is_on(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={**LASTING, "beat_enable_remote_control": True}, schedule=SCHEDULE)
    host = socket.gethostname()
    first = fleet.beat("b1", "--hostname", "first@%h", node=f"first@{host}")
    assert fleet.leader("beat") is first
    second = fleet.beat("b2", "--hostname", "second@%h", node=f"second@{host}")
    fleet.takes_part(second, "beat")
    names = {f"first@{host}": first, f"second@{host}": second}
    found: dict[str, Any] = {}

    def both() -> bool:
        nonlocal found
        inspect = fleet.app.control.inspect(timeout=5, limit=2)
        found = inspect._request("leader") or {}
        return found.keys() == names.keys() and all("beat" in each for each in found.values())

    wait_until(both, timeout=60, what="both beats to answer")
    assert found[f"first@{host}"]["beat"]["leading"] is True
    assert found[f"second@{host}"]["beat"]["leader"] == first.node
    done = fleet.run("control", "leader_resign", "beat", "--timeout", "5")
    assert "gives beat up" in done.stdout, done
    assert fleet.leader("beat", other_than=first) is second
    fleet.arrived(len(fleet.messages()) + 2)


def test_a_worker_that_is_no_candidate_says_that_it_stands_in_no_election(
    fleet: Fleet,
) -> None:
    worker = fleet.worker("w1", "--no-candidate").says(" ready.")
    found = fleet.app.control.inspect([worker.node], timeout=10, limit=1)._request("leader")
    assert found == {worker.node: {}}
