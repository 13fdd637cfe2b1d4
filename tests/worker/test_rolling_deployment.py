"""Workers of two releases side by side: what one of them does not know waits for the other."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import NotRegistered

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.waiting import wait_until

NOT_KNOWN = "task fleet.lead is leader-only and unknown to this worker; it"
DISCARDED = "Received unregistered task"


def old_leader(fleet: Fleet, *unknown: str, **config: Any) -> Process:
    """A worker that leads, and whose release lacks some tasks."""
    old = fleet.worker("old", "-P", "solo", unknown=unknown or ("lead",), **config)
    return old.says(" ready.").says("consuming from celery.leader")


def new_follower(fleet: Fleet) -> Process:
    new = fleet.worker("new", "-P", "solo").says(" ready.")
    fleet.takes_part(new)
    return new


def test_of_fifty_messages_that_an_old_leader_does_not_know_none_is_lost(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    old, new = old_leader(fleet), new_follower(fleet)
    lead = fleet.app.tasks["fleet.lead"]
    sent = [lead.apply_async(("new",), queue=queue) for queue in 25 * (None, "celery")]
    wait_until(lambda: NOT_KNOWN in old.log or DISCARDED in old.log, what="old code to meet new")
    assert old.terminate() == 0
    nodes = [result.get(timeout=30)["node"] for result in sent]
    assert nodes == [new.node] * 50
    assert len(fleet.records("ran", "new")) == 50
    assert DISCARDED not in old.log
    # Once for what goes to the leader queue, once for what stays there.
    assert old.log.count(NOT_KNOWN) <= 2
    assert "Traceback" not in old.log


def test_what_the_leader_knows_is_not_kept_waiting_by_what_it_does_not_know(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    old_leader(fleet)
    # Four at a time and a second each, these would take 25 s.
    for _ in range(100):
        fleet.app.tasks["fleet.lead"].delay("new")
    fleet.app.tasks["fleet.lead_late"].delay("known").get(timeout=10)


def test_what_nobody_gets_to_know_is_discarded_after_a_while(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={**LASTING, "leader_unknown_task_timeout": 3.0})
    old = old_leader(fleet)
    sent = [fleet.app.tasks["fleet.lead"].delay("nobody's") for _ in range(3)]
    old.says("is put back into celery.leader")
    for result in sent:
        with pytest.raises(NotRegistered):
            result.get(timeout=30)
    wait_until(lambda: old.log.count(DISCARDED) == 3, what="Celery's own words for each")
    assert old.log.count(f"{NOT_KNOWN} is discarded") == 1
    assert fleet.messages("celery.leader") == []
    assert fleet.redis.hgetall("unacked") == {}


def test_a_message_that_was_put_back_is_counted_from_when_it_was_first_unknown(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf={**LASTING, "leader_unknown_task_timeout": 3600})
    old = old_leader(fleet)
    fleet.app.tasks["fleet.lead"].delay("new")

    def marked() -> bool:
        texts = [*fleet.redis.hvals("unacked"), *fleet.redis.lrange("celery.leader", 0, -1)]
        return "leader_unknown_since" in str(texts)

    wait_until(marked, what="the message to be put back")
    assert old.terminate() == 0
    again = old_leader(fleet).says("is put back into celery.leader")
    assert again.terminate() == 0
    (headers,) = fleet.arrived(1, "celery.leader")
    assert abs(fleet.moment() - headers["leader_unknown_since"]) < 60
    (raw,) = fleet.redis.lrange("celery.leader", 0, -1)
    assert raw.count("leader_unknown_since") == 1


def test_with_no_time_at_all_it_is_discarded_as_celery_does(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf={**LASTING, "leader_unknown_task_timeout": 0})
    old = old_leader(fleet)
    with pytest.raises(NotRegistered):
        fleet.app.tasks["fleet.lead"].delay("nobody's").get(timeout=30)
    assert NOT_KNOWN not in old.log


def test_an_election_that_only_new_code_has_does_not_lose_its_messages_in_another_queue(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    old = old_leader(fleet, "plain")
    marked = {"headers": {"leader_only": "only-in-new-code"}}
    result = fleet.send("plain", "new", **marked)
    old.says("is put back into celery until")
    new = new_follower(fleet)
    assert result.get(timeout=30)["node"] == new.node
    assert len(fleet.records("ran", "new")) == 1


def test_a_map_of_a_task_that_the_leader_does_not_know_waits_too(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    old = old_leader(fleet)
    result = fleet.app.tasks["fleet.lead"].map(["a", "b"]).delay()
    old.says(f"{NOT_KNOWN} is put back into celery.leader")
    new = new_follower(fleet)
    assert old.terminate() == 0
    assert len(result.get(timeout=30)) == 2
    assert [seen["node"] for seen in fleet.records("ran")] == [None, None]
    assert "Traceback" not in old.log
    assert new.alive
