"""A leader queue in Redis: a message is with one life or in the queue, whatever happens."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from celery_leader.core.lease import Granted
from celery_leader.store.client import Script
from celery_leader.store.in_flight import (
    FETCH,
    LAST_CONNECTION,
    Fetched,
    InFlight,
    QueueKeys,
    read_fetched,
)
from celery_leader.store.lease_store import RedisLeaseStore
from tests.support.fixtures import PREFIX, MakeStore
from tests.support.lease_requests import LONG, NAME, acquire, release, renew
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

QUEUE = "celery.leader"
SHORT = 0.3  # seconds; a lease that a test waits for


def message(name: str, **headers: Any) -> str:
    """A message as kombu writes it."""
    properties = {
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "delivery_tag": f"tag of {name}",
        "correlation_id": name,
    }
    body = {"body": "W10=", "content-encoding": "utf-8", "content-type": "application/json"}
    return json.dumps({**body, "headers": headers, "properties": properties})


def name_of(text: bytes | str) -> str:
    name: str = json.loads(text)["properties"]["correlation_id"]
    return name


class Life:
    """One life of a node, as a worker uses it."""

    def __init__(self, queue: LeaderQueue, name: str) -> None:
        self.queue = queue
        self.node = name.partition("/")[0]
        self.nonce = f"life-of-{name}"
        self.term = 0
        self.attempt = 0
        self.connection = 1
        self.in_flight = InFlight(queue.keys, self.nonce, self.node)

    def lead(self, lease: float = LONG, **more: Any) -> Life:
        self.attempt += 1
        request = acquire(self.node, self.attempt, nonce=self.nonce, lease_duration=lease, **more)
        reply = self.queue.leases.perform([request])[0]
        assert isinstance(reply, Granted), reply
        self.term = reply.term
        return self

    def renew(self, lease: float = LONG) -> None:
        self.attempt += 1
        self.queue.leases.perform(
            [renew(self.node, self.attempt, self.term, nonce=self.nonce, lease_duration=lease)]
        )

    def ask_in_vain(self, lease: float = LONG) -> None:
        """Ask as a follower does, and as a life that was deposed."""
        self.attempt += 1
        self.queue.leases.perform(
            [acquire(self.node, self.attempt, nonce=self.nonce, lease_duration=lease)]
        )

    def release(self) -> None:
        self.attempt += 1
        self.queue.leases.perform([release(self.node, self.attempt, nonce=self.nonce)])

    def fetch(self, most: int = 10, *, all_lives: bool = False) -> Fetched:
        keys, arguments = self.in_flight.fetch_arguments(
            self.term, self.connection, most, all_lives=all_lives
        )
        return read_fetched(self.queue.run(FETCH, keys, arguments))

    def names(self, most: int = 10, **how: bool) -> list[str]:
        return [name_of(text) for text in self.fetch(most, **how).messages]

    def settle(self, *names: str) -> set[str]:
        """The tags of those that it does not hold."""
        return self.in_flight.settle(self.queue.run, [f"tag of {name}" for name in names])

    def give_back(self, *names: str, behind: bool = False, header: str = "") -> int:
        tags = [f"tag of {name}" for name in names]
        return self.in_flight.give_back(self.queue.run, tags, behind=behind, header=header)

    def give_back_but(self, *names: str, for_good: bool = False) -> int:
        self.connection += 1
        tags = [f"tag of {name}" for name in names]
        connection = LAST_CONNECTION if for_good else self.connection
        return self.in_flight.give_back_but(self.queue.run, tags, connection)


class LeaderQueue:
    """The leader queue of one election, with kombu's keys beside it."""

    def __init__(self, leases: RedisLeaseStore, url: str, prefix: str = "") -> None:
        self.leases = leases
        self.redis: Any = redis.Redis.from_url(url)
        self.lists = [f"{prefix}{QUEUE}{step}" for step in ("", "\x06\x163", "\x06\x166")]
        self.unacked = f"{prefix}unacked"
        self.keys = QueueKeys(
            NAME, QUEUE, (self.unacked, f"{prefix}unacked_index"), self.lists, leases.keys
        )

    def run(self, script: Script, keys: Any, args: Any) -> Any:
        return self.redis.execute_command(*script.by_text(keys, args))

    def send(self, *names: str, step: int = 0, **headers: Any) -> None:
        for name in names:
            self.redis.lpush(self.lists[step], message(name, **headers))

    @property
    def waiting(self) -> list[str]:
        """The names of the messages in the queue, the next one first."""
        return [name_of(text) for key in self.lists for text in self.redis.lrange(key, 0, -1)[::-1]]

    @property
    def held(self) -> dict[str, str]:
        """The messages in flight, each with its life."""
        found = {}
        for tag, line in self.redis.hgetall(self.keys.in_flight).items():
            (text, *_) = json.loads(self.redis.hget(self.unacked, tag))
            found[text["properties"]["correlation_id"]] = line.decode().split()[3]
        assert len(found) == self.redis.hlen(self.unacked)
        return found


@pytest.fixture(params=["", PREFIX], ids=["", "with a key prefix"])
def queue(request: pytest.FixtureRequest, make_store: MakeStore, redis_url: str) -> LeaderQueue:
    return LeaderQueue(make_store(prefix=request.param), redis_url, request.param)


def test_a_leader_fetches_in_order_and_settles(queue: LeaderQueue) -> None:
    queue.send("1", "2", "3")
    a = Life(queue, "a").lead()
    assert a.names(2) == ["1", "2"]
    assert queue.waiting == ["3"]
    assert queue.held == {"1": a.nonce, "2": a.nonce}
    a.settle("1", "2")
    assert queue.held == {}
    assert queue.waiting == ["3"]


def test_messages_of_a_higher_priority_come_first(queue: LeaderQueue) -> None:
    queue.send("low", step=2)
    queue.send("middle", step=1)
    queue.send("high")
    a = Life(queue, "a").lead()
    fetched = a.fetch(2)
    assert [name_of(text) for text in fetched.messages] == ["high", "middle"]
    assert fetched.came_from == 1
    assert a.fetch().came_from == 2
    assert a.fetch().came_from is None


def test_who_does_not_lead_fetches_nothing(queue: LeaderQueue) -> None:
    queue.send("1")
    a, b = Life(queue, "a").lead(), Life(queue, "b")
    b.term = a.term
    assert b.fetch().refused == "refused"
    a.term += 1
    assert a.fetch().refused == "missing"
    a.term -= 2
    assert a.fetch().refused == "refused"
    assert queue.waiting == ["1"]


def test_after_its_lease_a_life_fetches_nothing(queue: LeaderQueue) -> None:
    queue.send("1")
    a = Life(queue, "a").lead(SHORT)
    wait_until(lambda: a.fetch(0).refused == "refused", what="the lease to end")
    assert queue.waiting == ["1"]


def test_after_a_release_a_life_fetches_nothing(queue: LeaderQueue) -> None:
    queue.send("1")
    a = Life(queue, "a").lead()
    a.release()
    assert a.fetch().refused == "refused"
    assert queue.waiting == ["1"]


def test_what_a_life_held_is_in_front_of_the_queue_once_its_lease_is_over(
    queue: LeaderQueue,
) -> None:
    queue.send("1", "2", "3", "4")
    a = Life(queue, "a").lead(SHORT)
    assert a.names(3) == ["1", "2", "3"]
    a.settle("2")
    queue.send("5")
    b = Life(queue, "b")
    wait_until(lambda: a.fetch(0).refused == "refused", what="the lease to end")
    b.lead(from_missing=False, watched=(a.term, 0))
    fetched = b.fetch()
    assert fetched.given_back == 2
    assert [name_of(text) for text in fetched.messages] == ["1", "3", "4", "5"]
    assert queue.held == dict.fromkeys(["1", "3", "4", "5"], b.nonce)


def test_each_renewal_keeps_what_a_life_holds(queue: LeaderQueue) -> None:
    queue.send("1")
    a = Life(queue, "a").lead(SHORT)
    assert a.names() == ["1"]
    a.renew(LONG)
    till, _ = queue.redis.hget(queue.keys.all[1], a.nonce).split()
    assert int(till) == int(queue.redis.hget(queue.keys.all[0], "expires_at"))


def test_a_life_that_was_deposed_keeps_what_it_runs_while_it_is_heard_of(
    queue: LeaderQueue,
) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    assert a.names(1) == ["1"]
    a.release()
    b = Life(queue, "b").lead()
    assert b.names(all_lives=True) == ["2"]
    a.ask_in_vain(SHORT)
    assert b.fetch(all_lives=True).given_back == 0
    wait_until(lambda: b.fetch().given_back == 1, what="the deposed life to be given up")
    a.settle("1")
    assert queue.held == {"1": b.nonce, "2": b.nonce} or queue.waiting == ["1"]


def test_a_late_acknowledgement_takes_nothing_from_the_next_life(queue: LeaderQueue) -> None:
    queue.send("1")
    a = Life(queue, "a").lead()
    a.fetch()
    assert a.give_back_but(for_good=True) == 1
    a.release()
    b = Life(queue, "b").lead()
    assert b.names() == ["1"]
    assert a.settle("1") == {"tag of 1"}
    assert a.give_back("1") == 0
    assert queue.held == {"1": b.nonce}


def test_of_large_messages_a_fetch_brings_as_many_as_redis_is_quick_with(
    queue: LeaderQueue,
) -> None:
    for name in ("1", "2", "3", "4"):
        queue.redis.lpush(queue.lists[0], message(name, mine="x" * 600_000))
    a = Life(queue, "a").lead()
    assert [a.names(), a.names(), a.names()] == [["1", "2"], ["3", "4"], []]
    queue.redis.lpush(queue.lists[0], message("huge", mine="x" * 3_000_000))
    assert a.names() == ["huge"]


def test_a_message_is_given_back_in_front_or_behind(queue: LeaderQueue) -> None:
    queue.send("1", "2", "3")
    a = Life(queue, "a").lead()
    a.fetch(2)
    assert a.give_back("2") == 1
    assert queue.waiting == ["2", "3"]
    assert a.give_back("1", behind=True) == 1
    assert queue.waiting == ["2", "3", "1"]
    assert a.give_back("1") == 0
    assert queue.held == {}


def test_a_message_is_given_back_with_one_more_header_which_is_written_once(
    queue: LeaderQueue,
) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    sizes = set()
    for _ in range(5):
        a.fetch()
        a.give_back("1", behind=True, header='"since": 5')
        a.give_back("2", behind=True)
        texts = queue.redis.lrange(queue.lists[0], 0, -1)
        sizes.add(len(texts[1]))
        first, second = (json.loads(text) for text in reversed(texts))
        assert (first["headers"]["since"], first["headers"]["redelivered"]) == (5, True)
        assert "since" not in second["headers"]
        assert queue.waiting == ["1", "2"]
    assert len(sizes) == 1


def test_a_message_goes_back_to_the_list_of_its_priority(queue: LeaderQueue) -> None:
    queue.send("low", step=2)
    queue.send("high")
    a = Life(queue, "a").lead()
    a.fetch()
    a.give_back_but()
    assert queue.redis.llen(queue.lists[2]) == queue.redis.llen(queue.lists[0]) == 1


def test_thousands_go_back_in_order(queue: LeaderQueue) -> None:
    names = [str(number) for number in range(1201)]
    queue.send(*names)
    a = Life(queue, "a").lead()
    assert a.names(1201) == names
    assert a.give_back_but("7") == 1200
    assert queue.waiting == [name for name in names if name != "7"]


def test_a_new_leader_fetches_nothing_before_everything_is_back(queue: LeaderQueue) -> None:
    names = [str(number) for number in range(1100)]
    queue.send(*names)
    a = Life(queue, "a").lead(SHORT)
    a.fetch(1000)
    wait_until(lambda: a.fetch(0).refused == "refused", what="the lease to end")
    b = Life(queue, "b").lead(from_missing=False, watched=(a.term, 0))
    first = b.fetch(1)
    assert first.more_to_give_back
    assert first.messages == ()
    second = b.fetch(5)
    assert (first.given_back, second.given_back) == (500, 500)
    assert [name_of(text) for text in second.messages] == names[:5]


def test_a_fetch_over_an_earlier_connection_is_refused(queue: LeaderQueue) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    a.fetch(1)
    assert a.give_back_but() == 1
    a.connection -= 1
    assert a.fetch().refused == "replaced"
    a.connection += 1
    assert a.names() == ["1", "2"]
    a.settle("2")
    a.give_back_but("1", for_good=True)
    assert a.fetch().refused == "replaced"
    a.renew()
    assert a.fetch().refused == "replaced"
    assert queue.held == {"1": a.nonce}


def test_a_life_that_ends_leaves_nothing_behind(queue: LeaderQueue) -> None:
    queue.send("1", "2")
    a = Life(queue, "a").lead()
    a.fetch()
    a.settle("1")
    a.give_back_but(for_good=True)
    _, lives, in_flight, unacked, *_ = queue.keys.all
    assert [queue.redis.exists(key) for key in (lives, in_flight, unacked)] == [0, 0, 0]
    assert queue.waiting == ["2"]


def test_messages_of_a_life_that_nobody_knows_are_found(queue: LeaderQueue) -> None:
    queue.send("1")
    a = Life(queue, "a").lead()
    a.fetch()
    queue.redis.hdel(queue.keys.all[1], a.nonce)
    a.release()
    b = Life(queue, "b").lead()
    assert b.names() == []
    assert b.names(all_lives=True) == ["1"]


@pytest.mark.parametrize(
    "headers", [{}, {"task": "t"}, {"redelivered": False, "headers": {"a": 1}}]
)
def test_what_was_given_back_is_marked_as_redelivered_and_else_unchanged(
    headers: dict[str, Any], queue: LeaderQueue
) -> None:
    body = '{"headers": {}, "delivery_info": {}}'
    text = json.loads(message("1", **headers))
    text["body"] = body
    queue.redis.lpush(queue.lists[0], json.dumps(text))
    a = Life(queue, "a").lead()
    for _ in range(3):
        a.fetch()
        a.give_back_but()
    (raw,) = queue.redis.lrange(queue.lists[0], 0, -1)
    found = json.loads(raw)
    assert found["body"] == body
    assert found["properties"]["delivery_info"].pop("redelivered") is True
    assert found["headers"].pop("redelivered") in (True, False)
    text["headers"].pop("redelivered", None)
    assert found == text
    assert raw.count(b'"redelivered"') <= 3


@pytest.mark.parametrize("bad", ["", "no JSON", "[]", "7", '{"properties": {}}', '{"a": 1}'])
def test_what_is_no_message_is_set_aside_and_the_others_go_on(bad: str, queue: LeaderQueue) -> None:
    queue.redis.lpush(queue.lists[0], bad)
    queue.send("1")
    a = Life(queue, "a").lead()
    fetched = a.fetch()
    assert fetched.unreadable == 1
    assert [name_of(text) for text in fetched.messages] == ["1"]
    assert queue.redis.lrange(queue.keys.unreadable, 0, -1) == [bad.encode()]


def test_a_message_that_came_twice_is_two_messages(queue: LeaderQueue) -> None:
    queue.send("1", "1")
    a = Life(queue, "a").lead()
    first, second = (json.loads(text) for text in a.fetch().messages)
    tags = {each["properties"]["delivery_tag"] for each in (first, second)}
    assert len(tags) == 2
    assert a.give_back_but() == 2
    assert queue.waiting == ["1", "1"]


@pytest.mark.parametrize("line", ["", "nonsense", "1 9 1 life node", f"{'9' * 30} 1 1 life node"])
def test_a_line_in_flight_that_makes_no_sense_is_named_and_left(
    line: str, queue: LeaderQueue
) -> None:
    queue.redis.hset(queue.keys.in_flight, "tag", line)
    queue.send("1")
    a = Life(queue, "a").lead()
    fetched = a.fetch(all_lives=True)
    assert fetched.damaged == 1
    assert len(fetched.messages) == 1
    assert queue.redis.hget(queue.keys.in_flight, "tag") == line.encode()


@pytest.mark.parametrize("step", ["fetch", "give back"])
def test_a_full_redis_loses_nothing(
    make_store: MakeStore, own_redis: RedisServer, step: str
) -> None:
    queue = LeaderQueue(make_store(own_redis.url), own_redis.url)
    queue.send("1", "2", "3")
    a = Life(queue, "a").lead()
    a.fetch(1)
    queue.redis.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.ResponseError, match="maxmemory"):
        a.fetch() if step == "fetch" else a.give_back("1")
    queue.redis.config_set("maxmemory", 0)
    assert queue.held == {"1": a.nonce}
    assert queue.waiting == ["2", "3"]
    assert a.names() == ["2", "3"]


def test_wherever_a_message_is_it_is_there_once(queue: LeaderQueue) -> None:
    seed = int(os.environ.get("CELERY_LEADER_TEST_SEED") or random.randrange(2**32))
    print(f"CELERY_LEADER_TEST_SEED={seed}")
    Course(queue, random.Random(seed)).run(400)


class Course:
    """A random course of lives that lead, fetch, settle, give back, and die."""

    def __init__(self, queue: LeaderQueue, chance: random.Random) -> None:
        self.queue = queue
        self.chance = chance
        self.sent = 0
        self.done: set[str] = set()
        self.lives: list[Life] = []
        self.leader = self._next_leader()

    def run(self, steps: int) -> None:
        acts: list[Callable[[], object]] = [
            self.send,
            self.fetch,
            self.fetch,
            self.settle,
            self.settle,
            self.give_back,
            self.reconnect,
            self.depose,
            self.die,
        ]
        for _ in range(steps):
            self.chance.choice(acts)()
            self.check()

    def send(self) -> None:
        for _ in range(self.chance.randrange(4)):
            self.sent += 1
            self.queue.send(str(self.sent), step=self.chance.choice((0, 0, 1, 2)))

    def fetch(self) -> None:
        self.leader.fetch(self.chance.randrange(1, 6), all_lives=self.chance.random() < 0.1)
        for life in self.lives:
            if life is not self.leader and self.chance.random() < 0.3:
                assert life.fetch().refused

    def settle(self) -> None:
        life = self.chance.choice(self.lives)
        name = str(self.chance.randrange(self.sent + 1))
        if self.queue.held.get(name) == life.nonce:
            self.done.add(name)
        life.settle(name)

    def give_back(self) -> None:
        life = self.chance.choice(self.lives)
        names = [str(self.chance.randrange(self.sent + 1)) for _ in range(3)]
        life.give_back(*names, behind=self.chance.random() < 0.3)

    def reconnect(self) -> None:
        life = self.chance.choice(self.lives)
        kept = [name for name, of in self.queue.held.items() if of == life.nonce]
        life.give_back_but(*kept[: self.chance.randrange(3)])

    def depose(self) -> None:
        self.leader.release()
        self.leader = self._next_leader()

    def die(self) -> None:
        """The leader is killed, and what it holds is kept no longer."""
        self.leader.release()
        self.queue.redis.hset(self.queue.keys.all[1], self.leader.nonce, "1 1")
        if len(self.lives) > 2:
            self.lives.remove(self.leader)
        self.leader = self._next_leader()

    def check(self) -> None:
        held, waiting = self.queue.held, Counter(self.queue.waiting)
        everywhere = waiting + Counter(held.keys()) + Counter(self.done)
        assert everywhere == Counter(str(number + 1) for number in range(self.sent))

    def _next_leader(self) -> Life:
        life = Life(
            self.queue, f"{self.chance.choice('abc')}/{len(self.lives)}-{self.sent}-{id(self)}"
        )
        life.nonce += str(self.chance.randrange(2**60))
        life.in_flight = InFlight(self.queue.keys, life.nonce, life.node)
        self.lives.append(life)
        return life.lead()
