"""Leader-only tasks over each kind of queue and exchange that RabbitMQ and Celery have.

With quorum queues and exchanges that are not direct, Celery leaves the waiting for an ETA to
RabbitMQ (native delayed delivery); with all others the worker holds the message.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from kombu import Connection

from celery_leader import leader_only
from tests.support.fixtures import NewOnRabbit
from tests.support.fleet import Fleet
from tests.support.waiting import wait_until


def queues_of(kind: str, exchange: str) -> dict[str, Any]:
    """Settings by which all queues are of ``kind``, and all exchanges are ``exchange`` ones."""
    return {
        "task_default_queue_type": kind,
        "task_create_missing_queue_type": kind,
        "task_default_exchange_type": exchange,
        "task_create_missing_queue_exchange_type": exchange,
        "worker_detect_quorum_queues": True,
    }


KINDS = {
    "classic, direct": queues_of("classic", "direct"),
    "classic, topic": queues_of("classic", "topic"),
    "quorum, direct": queues_of("quorum", "direct"),
    "quorum, topic": queues_of("quorum", "topic"),
    "only the leader's are quorum, topic": {
        **queues_of("quorum", "topic"),
        "task_default_queue_type": "classic",
        "task_default_exchange_type": "direct",
    },
}


def leading_and_following(fleet: Fleet) -> tuple[Any, Any]:
    """Two workers, of which one leads both elections."""
    default = fleet.config["conf"]["task_default_queue"]
    first = fleet.worker("w1", "-Q", default, "-c", "2").says(" ready.")
    assert fleet.leader() is first
    assert fleet.leader("reports") is first
    second = fleet.worker("w2", "-Q", f"{default},{default}-w2", "-c", "2").says(" ready.")
    for election in ("worker", "reports"):
        fleet.takes_part(second, election)
    return first, second


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_for_its_time_runs_on_the_leader_when_that_has_come(
    new_on_rabbit: NewOnRabbit, kind: str
) -> None:
    fleet = new_on_rabbit({}, **KINDS[kind])
    leader, follower = leading_and_following(fleet)
    tasks = fleet.app.tasks
    theirs = f"{fleet.config['conf']['task_default_queue']}-w2"
    before = datetime.now(timezone.utc)
    due = before + timedelta(seconds=3)
    sent = {
        "countdown": tasks["fleet.lead"].apply_async(("countdown",), countdown=3),
        "eta": tasks["fleet.lead"].apply_async(("eta",), eta=due),
        "another election": tasks["fleet.report"].apply_async(("another election",), eta=due),
        "handed over": tasks["fleet.lead"].apply_async(("handed over",), queue=theirs, eta=due),
        "retried": tasks["fleet.retried_later"].delay("retried"),
        "at once": tasks["fleet.lead"].apply_async(("at once",)),
    }
    for label, result in sent.items():
        assert result.get(timeout=30)["node"] == leader.node, label
    for label in ("countdown", "eta", "another election", "handed over"):
        (ran,) = fleet.records("ran", label)
        assert ran["at"] >= 1e6 * (due.timestamp() - 1), f"{label} ran too early"
    follower.says(f"[{sent['handed over'].id}] handed to")
    assert len(fleet.records("ran")) == len(sent)
    assert all("Traceback" not in process.log for process in fleet.processes)


def test_what_waits_for_its_time_is_there_for_the_next_leader(new_on_rabbit: NewOnRabbit) -> None:
    fleet = new_on_rabbit({}, **KINDS["quorum, topic"])
    leader, follower = leading_and_following(fleet)
    sent = [
        fleet.app.tasks[f"fleet.{name}"].apply_async(("later",), countdown=4)
        for name in ("lead", "report")
    ]
    assert leader.terminate() == 0
    assert [result.get(timeout=30)["node"] for result in sent] == [follower.node] * 2


def test_an_election_that_no_worker_knows_yet_loses_no_task_that_waits_for_its_time(
    new_on_rabbit: NewOnRabbit,
) -> None:
    fleet = new_on_rabbit({}, **KINDS["quorum, topic"])
    leading_and_following(fleet)

    @leader_only(election="found-late")
    @fleet.app.task(name="fleet.found_late", shared=False)
    def found_late() -> None: ...

    sent = found_late.apply_async(countdown=1)
    queue = f"{fleet.config['conf']['task_default_queue']}.leader.found-late"
    with Connection(fleet.config["broker"]) as connection:
        channel = connection.channel()
        message = wait_until(lambda: channel.basic_get(queue, no_ack=True), what="the message")
    assert message is not None
    assert message.headers["id"] == sent.id
