"""What becomes of a body whose worker stops leading while it runs."""

from __future__ import annotations

import os
import signal

import pytest

from celery_leader import NotLeader
from tests.support.fixtures import NewFleet
from tests.support.fleet import QUICK, Fleet, Process
from tests.support.waiting import wait_until

#: Long enough for a body that was told to end to do so before it is killed.
PATIENT = {**QUICK, "leader_lease_duration": 6.0}


def lose_the_lease(fleet: Fleet) -> None:
    """Have the record say that another, which nobody is, leads for a while."""
    record = fleet.record()
    stolen = {"holder": "nobody@nowhere", "nonce": "another", "term": int(record["term"]) + 1}
    fleet.leases.hset(fleet.key("election", "worker"), mapping=stolen)


def deposed(fleet: Fleet, leader: Process) -> None:
    lose_the_lease(fleet)
    leader.says("deposed, term")


@pytest.mark.parametrize(
    ("pool", "task"),
    [("prefork", "abortable"), ("solo", "abortable"), ("threads", "abortable_busy")],
)
def test_an_aborted_body_fails_with_not_leader_and_the_worker_goes_on(
    new_fleet: NewFleet, pool: str, task: str
) -> None:
    fleet = new_fleet(conf=PATIENT)
    leader = fleet.worker("w1", "-P", pool).says(" ready.").says("consuming from celery.leader")
    result = fleet.send(task, "body")
    fleet.saw("started", "body")
    lose_the_lease(fleet)
    (aborted,) = fleet.saw("aborted", "body")
    # Nobody else can lead yet: "nobody" is said to have the lease until then.
    assert aborted["at"] // 1000 < int(fleet.record()["expires_at"])
    with pytest.raises(NotLeader, match="deposed, term"):
        fleet.app.AsyncResult(result.id).get(timeout=30)
    assert fleet.send("plain").get(timeout=30)["node"] == leader.node


def test_a_body_is_aborted_when_its_worker_leads_on_with_another_term(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=PATIENT)
    fleet.worker("w1").says(" ready.").says("consuming from celery.leader")
    old = fleet.record()["term"]
    result = fleet.send("abortable", "body")
    fleet.saw("started", "body")
    fleet.leases.delete(fleet.key("election", "worker"))  # a leader writes it anew
    fleet.saw("aborted", "body")
    with pytest.raises(NotLeader, match=f"deposed, term {old}, while"):
        fleet.app.AsyncResult(result.id).get(timeout=30)


def test_a_body_is_aborted_in_time_though_its_main_process_stands_still(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=PATIENT)
    leader = fleet.worker("w1").says(" ready.").says("consuming from celery.leader")
    fleet.send("abortable", "body")
    fleet.saw("started", "body")
    os.kill(leader.pid, signal.SIGSTOP)  # the main process alone
    expires_at = int(fleet.record()["expires_at"])
    (aborted,) = fleet.saw("aborted", "body")
    assert aborted["at"] // 1000 < expires_at


def test_a_body_that_ignores_it_is_killed_in_time_and_runs_again_elsewhere(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=PATIENT)
    first, second = fleet.workers("w1", "w2")
    leader = fleet.leader()
    other = second if leader is first else first
    fleet.takes_part(other)
    result = fleet.send("abortable_deaf", "body")
    fleet.saw("pulse", "body", count=3)
    os.kill(leader.pid, signal.SIGSTOP)
    expires_at = int(fleet.record()["expires_at"])
    assert fleet.leader(other_than=leader) is other
    last = fleet.records("pulse", "body")[-1]
    assert last["at"] // 1000 < expires_at
    os.kill(leader.pid, signal.SIGCONT)
    assert fleet.app.AsyncResult(result.id).get(timeout=30)["node"] == other.node
    assert fleet.records("pulse", "body")[-1] == last


def test_an_aborted_body_that_is_retried_goes_on_at_the_next_leader(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=PATIENT)
    leader = fleet.worker("w1").says(" ready.").says("consuming from celery.leader")
    result = fleet.send("abortable_again", "body")
    fleet.saw("started", "body")
    deposed(fleet, leader)
    assert fleet.app.AsyncResult(result.id).get(timeout=30)["id"] == result.id
    assert len(fleet.records("aborted", "body")) == 1
    (ran,) = fleet.records("ran", "body")
    assert ran["term"] > fleet.records("started", "body")[0]["term"]


def test_a_body_that_may_finish_is_left_alone(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=PATIENT)
    leader = fleet.worker("w1").says(" ready.").says("consuming from celery.leader")
    result = fleet.send("hold", "body")
    fleet.saw("started", "body")
    deposed(fleet, leader)
    fleet.open("body")
    assert result.get(timeout=30)["leads"] is False


def test_a_plain_function_runs_where_its_process_leads_and_nowhere_else(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=QUICK)
    first, second = fleet.workers("w1", "w2", pool="solo")
    leader = fleet.leader()
    other = second if leader is first else first
    there = fleet.send("lead_where_asked", "there", queue=leader.name)
    assert there.get(timeout=30) == {"led_with": fleet.history()[-1].term}
    refused = fleet.send("lead_where_asked", "elsewhere", queue=other.name)
    with pytest.raises(NotLeader, match="does not lead 'worker'"):
        fleet.app.AsyncResult(refused.id).get(timeout=30)
    wait_until(lambda: fleet.records("led", "there"), what="the function")
    assert fleet.records("led", "elsewhere") == []
