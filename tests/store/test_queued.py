"""What people are told of a leader queue, whatever stands in its keys."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_leader.core.lease import life_of
from celery_leader.store.queued import LINES, MESSAGES, WAITING, Queued
from celery_leader.store.survey import survey
from tests.store.test_in_flight import SHORT, LeaderQueue, Life
from tests.support.fixtures import PREFIX, MakeStore
from tests.support.lease_requests import NAME
from tests.support.waiting import wait_until


@pytest.fixture(params=["", PREFIX], ids=["", "with a key prefix"])
def queue(request: pytest.FixtureRequest, make_store: MakeStore, redis_url: str) -> LeaderQueue:
    return LeaderQueue(make_store(prefix=request.param), redis_url, request.param)


def looked_at(queue: LeaderQueue) -> Queued:
    queued = survey(queue.leases, [NAME], 1, {NAME: queue.keys})[NAME].queued
    assert queued is not None
    return queued


def everything(queue: LeaderQueue) -> dict[bytes, bytes]:
    return {key: queue.redis.dump(key) for key in queue.redis.keys("*")}


def test_a_queue_that_nobody_has_used_is_empty(queue: LeaderQueue) -> None:
    queued = looked_at(queue)
    assert (queued.waiting, queued.in_flight, queued.unreadable, queued.error) == (0, 0, 0, "")
    assert (queued.holders, queued.longest, queued.stranded) == ([], [], 0)


def test_waiting_messages_are_counted_over_all_priorities(queue: LeaderQueue) -> None:
    queue.send("1", "2")
    queue.send("3", step=1)
    queue.send("4", step=2)
    assert looked_at(queue).waiting == 4
    assert queue.run(WAITING, queue.keys.all, []) == 4


def test_who_has_which_task_since_when_is_told_and_nothing_is_written(queue: LeaderQueue) -> None:
    queue.send("1", "2", task="proj.sweep", id="id of a sweep")
    queue.send("3", task="proj.report", id="id of a report")
    a = Life(queue, "a").lead()
    assert a.names(2) == ["1", "2"]
    before = everything(queue)
    queued = looked_at(queue)
    assert everything(queue) == before
    assert (queued.waiting, queued.in_flight) == (1, 2)
    (holder,) = queued.holders
    assert (holder.node, holder.life, holder.messages) == ("a", life_of(a.nonce), 2)
    assert holder.heard_of
    assert abs(queued.read_at - holder.since) < 60
    assert [each.what for each in queued.longest] == ["proj.sweep[id of a sweep]"] * 2
    assert 0 <= queued.held_for(queued.longest[0]) < 60
    assert a.nonce not in repr(queued)


def test_what_a_life_holds_that_nobody_has_heard_of_is_stranded(queue: LeaderQueue) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead(SHORT)
    a.fetch()
    assert looked_at(queue).stranded == 0
    wait_until(lambda: looked_at(queue).stranded == 2, what="the lease to end")
    assert not looked_at(queue).holders[0].heard_of


def test_a_message_that_waits_for_its_eta_is_in_flight_and_not_held_long(
    queue: LeaderQueue,
) -> None:
    now = datetime.now(timezone.utc)
    queue.send("to come", task="later", eta=(now + timedelta(hours=1)).isoformat())
    queue.send("was", task="soon", eta=(now - timedelta(minutes=5)).isoformat())
    queue.send("nonsense", task="never", eta="tomorrow")
    Life(queue, "a").lead().fetch()
    queued = looked_at(queue)
    assert queued.in_flight == 3
    assert {each.task for each in queued.longest} == {"soon", "never"}


def test_of_thousands_in_flight_a_bounded_number_is_read(queue: LeaderQueue) -> None:
    lines = {f"tag {n}": f"{n} 1 {1000 * n} life node" for n in range(1, 20_001)}
    queue.redis.hset(queue.keys.in_flight, mapping=lines)
    queued = looked_at(queue)
    assert queued.in_flight == 20_000
    assert LINES <= sum(each.messages for each in queued.holders) <= 2 * LINES
    assert len(queued.longest) == MESSAGES


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "1 2 3",
        "1 999 3 life node",
        "1 -1 3 life node",
        f"1 1 {10**15} life node",
        "1 1 3 life " + "n" * 300,
        b"\xff\xfe",
    ],
)
def test_lines_that_make_no_sense_are_counted(queue: LeaderQueue, line: Any) -> None:
    queue.send("1")
    Life(queue, "a").lead().fetch()
    queue.redis.hset(queue.keys.in_flight, "tag", line)
    queued = looked_at(queue)
    assert (queued.in_flight, queued.damaged, len(queued.longest)) == (2, 1, 1)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "",
        "no JSON",
        "[" * 5000,
        "[]",
        "7",
        "null",
        '["text"]',
        '[{"headers": null}, "", "q"]',
        '[{"headers": [1, 2]}, "", "q"]',
        '[{"headers": {"task": 5, "id": null, "eta": {}}}, "", "q"]',
        json.dumps([{"headers": {"task": "t" * 300, "id": "i" * 300}}, "", "q"]),
        json.dumps([{"body": "b" * 2**21, "headers": {"task": "proj.sweep"}}, "", "q"]),
    ],
    ids=range(13),
)
def test_a_message_that_cannot_be_read_is_told_without_its_task(
    queue: LeaderQueue, stored: str | None
) -> None:
    queue.send("1")
    Life(queue, "a").lead().fetch()
    if stored is None:
        queue.redis.delete(queue.unacked)
    else:
        queue.redis.hset(queue.unacked, "tag of 1", stored)
    queued = looked_at(queue)
    assert [each.what for each in queued.longest] == ["a task[id unknown]"]


@pytest.mark.parametrize("life", ["", "x", "99999999999999999999999 1", "-5 1", b"\xff"])
def test_a_life_that_makes_no_sense_is_told(queue: LeaderQueue, life: Any) -> None:
    queue.send("1")
    a = Life(queue, "a").lead()
    a.fetch()
    queue.redis.hset(queue.keys.all[1], a.nonce, life)
    assert [each.messages for each in looked_at(queue).holders] == [1]


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 7, 8, 10])
def test_a_key_of_another_type_is_one_sentence_and_the_rest_is_told(
    queue: LeaderQueue, nth: int
) -> None:
    queue.send("1")
    Life(queue, "a").lead().fetch()
    key = queue.keys.all[nth]
    queue.redis.delete(key)
    queue.redis.set(key, "x")
    found = survey(queue.leases, [NAME], 1, {NAME: queue.keys})[NAME]
    assert found.record is not None
    assert found.queued is not None
    assert f"the key {key} is a string and must be a " in found.queued.error
    assert "\n" not in found.queued.error


def test_without_a_queue_nothing_is_told_of_one(queue: LeaderQueue) -> None:
    assert survey(queue.leases, [NAME], 1)[NAME].queued is None
