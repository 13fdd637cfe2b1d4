"""The slots of a task: only so many of its bodies run, and no message waits for ever."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
import redis

from celery_leader.store.queued import WAITING
from celery_leader.store.slots import Answer, Limit, end_slot, take_slot
from tests.store.test_in_flight import SHORT, LeaderQueue, Life, name_of
from tests.store.test_in_flight import queue as queue
from tests.support.fixtures import MakeStore
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

ONE = Limit("proj.one", 1, parks=True)
TWO = Limit("proj.two", 2, parks=True)


def take(life: Life, name: str, limit: Limit = ONE) -> Answer:
    keys, tag = life.queue.keys, f"tag of {name}"
    return take_slot(life.queue.run, keys, life.nonce, life.term, tag, limit)


def end(life: Life, name: str, limit: Limit = ONE) -> None:
    end_slot(life.queue.run, life.queue.keys, life.nonce, f"tag of {name}", limit)


def parked(queue: LeaderQueue) -> list[str]:
    """The names of the parked messages, in their order."""
    members = queue.redis.zrange(queue.keys.all[7], 0, -1)
    return [name_of(member.split(b"\x1f", 3)[3]) for member in members]


def slots(queue: LeaderQueue) -> dict[str, str]:
    """The messages that have a slot, each with its life."""
    lines = queue.redis.hgetall(queue.keys.all[6])
    return {
        tag.decode().removeprefix("tag of "): line.decode().split()[0]
        for tag, line in lines.items()
        if not tag.startswith(b"place of ")
    }


def test_the_second_waits_and_goes_on_when_the_first_has_ended(queue: LeaderQueue) -> None:
    queue.send("1", "2", "3")
    a = Life(queue, "a").lead()
    a.fetch()
    assert [take(a, name) for name in "123"] == [Answer.TAKEN, Answer.PARKED, Answer.PARKED]
    assert queue.held == {"1": a.nonce}
    assert parked(queue) == ["2", "3"]
    assert queue.waiting == []
    assert queue.run(WAITING, queue.keys.all, []) == 2
    a.settle("1")
    end(a, "1")
    assert (queue.waiting, parked(queue)) == (["2"], ["3"])
    assert a.names() == ["2"]
    assert take(a, "2") is Answer.TAKEN
    end(a, "2")
    assert (queue.waiting, parked(queue)) == (["3"], [])


def test_asking_again_after_a_lost_answer_takes_no_second_slot(queue: LeaderQueue) -> None:
    queue.send("1")
    a = Life(queue, "a").lead()
    a.fetch()
    assert take(a, "1") is take(a, "1") is Answer.TAKEN
    assert slots(queue) == {"1": a.nonce}
    end(a, "1")
    end(a, "1")
    assert slots(queue) == {}


def test_each_task_has_its_own_slots(queue: LeaderQueue) -> None:
    queue.send("1", "2", "3", "4", "5")
    a = Life(queue, "a").lead()
    a.fetch()
    assert take(a, "1") is Answer.TAKEN
    assert [take(a, name, TWO) for name in "234"] == [Answer.TAKEN, Answer.TAKEN, Answer.PARKED]
    assert take(a, "5") is Answer.PARKED
    end(a, "1")
    assert (queue.waiting, parked(queue)) == (["5"], ["4"])
    end(a, "2", TWO)
    assert sorted(queue.waiting) == ["4", "5"]


def test_who_does_not_lead_gets_no_slot(queue: LeaderQueue) -> None:
    queue.send("1")
    a = Life(queue, "a").lead()
    a.fetch()
    a.release()
    assert take(a, "1") is Answer.REFUSED
    b = Life(queue, "b").lead()
    b.term += 1
    assert take(b, "1") is Answer.MISSING
    assert queue.held == {"1": a.nonce}


def test_a_message_that_another_life_has_gets_no_slot(queue: LeaderQueue) -> None:
    queue.send("1")
    a = Life(queue, "a").lead()
    a.fetch()
    a.give_back("1")
    assert take(a, "1") is Answer.LOST
    assert queue.waiting == ["1"]


def test_a_message_that_does_not_wait_stays_where_it_is(queue: LeaderQueue) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    a.fetch()
    skips = Limit(ONE.task, 1, parks=False)
    assert take(a, "1", skips) is Answer.TAKEN
    assert take(a, "2", skips) is Answer.BUSY
    assert queue.held == {"1": a.nonce, "2": a.nonce}


def test_a_deposed_life_keeps_its_slot_while_it_is_heard_of(queue: LeaderQueue) -> None:
    """Also with early acknowledgement, where the message is gone and the body runs on."""
    queue.send("1", "2", "3")
    a = Life(queue, "a").lead()
    a.fetch(1)
    assert take(a, "1") is Answer.TAKEN
    a.settle("1")
    a.release()
    b = Life(queue, "b").lead()
    a.ask_in_vain(SHORT)
    assert b.names(all_lives=True) == ["2", "3"]
    assert [take(b, name) for name in "23"] == [Answer.PARKED, Answer.PARKED]
    # And once it is not heard of any more, nothing waits for it.
    wait_until(lambda: b.names() == ["2"], what="the deposed life to be given up")
    assert take(b, "2") is Answer.TAKEN
    assert parked(queue) == ["3"]


def test_the_end_of_a_body_on_a_deposed_life_lets_the_next_one_go_on(queue: LeaderQueue) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    a.fetch(1)
    take(a, "1")
    a.settle("1")
    a.release()
    b = Life(queue, "b").lead()
    a.ask_in_vain()
    b.fetch()
    assert take(b, "2") is Answer.PARKED
    end(a, "1")
    assert b.names() == ["2"]


def test_the_slot_of_a_killed_life_goes_with_its_message(queue: LeaderQueue) -> None:
    queue.send("1", "2", "3")
    a = Life(queue, "a").lead(SHORT)
    a.fetch()
    assert [take(a, name) for name in "12"] == [Answer.TAKEN, Answer.PARKED]
    wait_until(lambda: a.fetch(0).refused == "refused", what="the lease to end")
    b = Life(queue, "b").lead(from_missing=False, watched=(a.term, 0))
    # "1" is in front again: the parked one waits behind it.
    assert b.names() == ["1", "3"]
    assert [take(b, name) for name in "13"] == [Answer.TAKEN, Answer.PARKED]
    end(b, "1")
    assert queue.waiting == ["2"]


def test_what_goes_back_in_front_leaves_its_slot_and_nobody_overtakes_it(
    queue: LeaderQueue,
) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    a.fetch()
    assert [take(a, name) for name in "12"] == [Answer.TAKEN, Answer.PARKED]
    a.give_back("1")
    assert slots(queue) == {}
    assert (queue.waiting, parked(queue)) == (["1"], ["2"])


def test_what_goes_back_behind_lets_the_next_one_go_on(queue: LeaderQueue) -> None:
    queue.send("1", "2", "3")
    a = Life(queue, "a").lead()
    a.fetch()
    for name in "123":
        take(a, name)
    a.give_back("1", behind=True)
    assert (queue.waiting, parked(queue)) == (["2", "1"], ["3"])


def test_a_message_that_has_to_wait_again_keeps_its_place(queue: LeaderQueue) -> None:
    queue.send("1", "2", "3", "4")
    a = Life(queue, "a").lead()
    a.fetch()
    for name in "123":
        take(a, name)
    end(a, "1")
    # Before "2" can begin, another takes the slot: its ETA has come.
    assert take(a, "4") is Answer.TAKEN
    assert a.names() == ["2"]
    assert take(a, "2") is Answer.PARKED
    assert parked(queue) == ["2", "3"]


def test_the_order_within_a_task_is_by_priority_first(queue: LeaderQueue) -> None:
    queue.send("1", "low")
    queue.send("lower", step=2)
    a = Life(queue, "a").lead()
    a.fetch()
    queue.send("2")
    a.fetch()
    for name in ("1", "lower", "low", "2"):
        take(a, name)
    assert parked(queue) == ["low", "2", "lower"]
    for name, rest in (("1", "low"), ("low", "2"), ("2", "lower")):
        end(a, name)
        assert a.names() == [rest]
        assert take(a, rest) is Answer.TAKEN


def test_places_are_counted_on_while_something_is_parked(queue: LeaderQueue) -> None:
    """A worker ends that holds nothing, and nothing is in flight."""
    queue.send("1", "2")
    a, b = Life(queue, "a").lead(), Life(queue, "b")
    a.fetch()
    for name in "12":
        take(a, name)
    a.settle("1")
    b.give_back_but(for_good=True)
    queue.send("3")
    a.fetch()
    take(a, "3")
    assert parked(queue) == ["2", "3"]


def test_a_parked_message_that_nobody_lets_go_on_is_found(queue: LeaderQueue) -> None:
    """Its forerunner was taken out of the queue, say, and can never end."""
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    a.fetch()
    for name in "12":
        take(a, name)
    queue.redis.hdel(queue.keys.all[6], "tag of 1")
    assert a.names() == ["2"]


def test_a_task_whose_slots_are_taken_keeps_its_parked_messages(queue: LeaderQueue) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    a.fetch()
    for name in "12":
        take(a, name)
    assert a.names() == []
    assert parked(queue) == ["2"]


@pytest.mark.parametrize("step", ["take", "park"])
def test_a_full_redis_loses_nothing(
    make_store: MakeStore, own_redis: RedisServer, step: str
) -> None:
    queue = LeaderQueue(make_store(own_redis.url), own_redis.url)
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    a.fetch()
    if step == "park":
        take(a, "1")
    queue.redis.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.ResponseError, match="maxmemory"):
        take(a, "1" if step == "take" else "2")
    queue.redis.config_set("maxmemory", 0)
    assert queue.held == {"1": a.nonce, "2": a.nonce}
    assert parked(queue) == []


def test_whatever_happens_no_task_runs_too_often_and_none_waits_for_ever(
    queue: LeaderQueue,
) -> None:
    seed = int(os.environ.get("CELERY_LEADER_TEST_SEED") or random.randrange(2**32))
    print(f"CELERY_LEADER_TEST_SEED={seed}")
    chance = random.Random(seed)
    limits = {"1": ONE, "2": TWO}
    names = [f"{chance.choice('12')}-{number}" for number in range(60)]
    for name in names:
        queue.send(name, step=chance.randrange(3))
    life, number = Life(queue, "life-0").lead(), 0
    fetched: list[str] = []
    running: dict[str, str] = {}
    done: list[str] = []
    for _ in range(3000):
        act = chance.choice(("fetch", "take", "take", "end", "end", "give back", "resign"))
        if act == "fetch":
            fetched += life.names(chance.randint(1, 5), all_lives=True)
        elif act == "take" and fetched:
            name = fetched.pop(chance.randrange(len(fetched)))
            answer = take(life, name, limits[name[0]])
            assert answer in (Answer.TAKEN, Answer.PARKED)
            if answer is Answer.TAKEN:
                if chance.random() < 0.5:
                    life.settle(name)
                running[name] = life.nonce
        elif act == "end" and running:
            name = chance.choice([*running])
            if running.pop(name) == life.nonce:
                life.settle(name)
                end(life, name, limits[name[0]])
                done.append(name)
            else:
                raise AssertionError("an earlier life runs nothing any more")
        elif act == "give back" and fetched:
            life.give_back(fetched.pop(), behind=chance.random() < 0.5)
        elif act == "resign" and chance.random() < 0.1:
            life.give_back_but(*running)
            fetched.clear()
            for name in [*running]:
                life.settle(name)
                end(life, name, limits[name[0]])
                done.append(name)
            running.clear()
            life.release()
            number += 1
            life = Life(queue, f"life-{number}").lead()
        counts = Counter(name[0] for name in running)
        assert counts["1"] <= 1
        assert counts["2"] <= 2
        everywhere = Counter([*queue.waiting, *queue.held, *parked(queue)])
        assert max(everywhere.values(), default=0) <= 1
        if len(done) == len(names):
            break
    assert sorted(done) == sorted(names)
    assert slots(queue) == {}
