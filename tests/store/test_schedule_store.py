"""The script that dispatches a tick: what it refuses, and that it does all or nothing."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from celery_leader.core.lease import Granted, LeaseStore, Request
from celery_leader.errors import StoreUnavailable
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.schedule_store import (
    DISPATCH,
    Answer,
    FencingToken,
    Outcome,
    Push,
    ScheduleStore,
)
from tests.support.fake_store import FakeStore
from tests.support.fixtures import MakeStore
from tests.support.lease_requests import LONG, NAME, acquire, release, renew
from tests.support.readme import acl_commands, acl_rules
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

QUEUE = "celery"
MESSAGE = Push("LPUSH", QUEUE, b"message")
OLD, NEW = "", '{"sequence": 1}'


class Shared:
    """Leases and the schedule beside them, in one Redis."""

    def __init__(self, leases: RedisLeaseStore, url: str) -> None:
        self.leases = leases
        self.schedule = ScheduleStore(leases.client.run, leases.keys, NAME)
        self.redis = redis.Redis.from_url(url, decode_responses=True)

    def ask(self, request: Request) -> object:
        return self.leases.perform([request])[0]

    def lead(self, holder: str, attempt: int = 1, lease: float = LONG) -> FencingToken:
        reply = self.ask(acquire(holder, attempt, lease_duration=lease))
        assert isinstance(reply, Granted)
        return FencingToken(f"life of {holder}", reply.term)

    def dispatch(self, token: FencingToken, old: str = OLD, new: str = NEW) -> Outcome:
        return self.schedule.dispatch(token, "tick", old, new, [MESSAGE]).outcome

    @property
    def messages(self) -> int:
        return int(self.redis.llen(QUEUE))  # type: ignore[arg-type]

    def nothing_happened(self) -> bool:
        return self.messages == 0 and self.schedule.load().states == {}


@pytest.fixture
def shared(make_store: MakeStore, redis_url: str) -> Shared:
    return Shared(make_store(), redis_url)


def test_a_leader_sends_and_its_state_moves_with_the_message(shared: Shared) -> None:
    assert shared.dispatch(shared.lead("a")) is Outcome.SENT
    assert shared.messages == 1
    assert shared.schedule.load().states == {"tick": NEW}


def test_a_dispatch_that_comes_twice_is_known_again(shared: Shared) -> None:
    token = shared.lead("a")
    assert shared.dispatch(token) is Outcome.SENT
    assert shared.dispatch(token) is Outcome.REPEATED
    assert shared.messages == 1


def test_where_one_of_several_queues_is_something_else_no_queue_has_the_message(
    shared: Shared,
) -> None:
    token = shared.lead("a")
    shared.redis.set("odd", "no list")
    pushes = [MESSAGE, Push("PUBLISH", "topic", b"message"), Push("LPUSH", "odd", b"message")]
    with pytest.raises(StoreUnavailable, match="odd"):
        shared.schedule.dispatch(token, "tick", OLD, NEW, pushes)
    assert shared.nothing_happened()


def test_a_tick_whose_state_is_another_is_not_sent(shared: Shared) -> None:
    token = shared.lead("a")
    assert shared.dispatch(token, old="of somebody else") is Outcome.CLAIMED
    assert shared.nothing_happened()


def test_the_term_before_sends_nothing_also_not_by_the_same_process(shared: Shared) -> None:
    before = shared.lead("a")
    shared.ask(release("a", 2))
    now = shared.lead("a", 3)
    assert shared.dispatch(before) is Outcome.REFUSED
    assert shared.schedule.forget(before, ["tick"]) is Outcome.REFUSED
    assert shared.nothing_happened()
    assert shared.dispatch(now) is Outcome.SENT


def test_another_sends_nothing_in_the_leaders_name(shared: Shared) -> None:
    leader = shared.lead("a")
    another = FencingToken("life of b", leader.term)
    assert shared.dispatch(another) is Outcome.REFUSED
    assert shared.nothing_happened()


def test_nothing_is_sent_once_the_lease_has_run_out_though_nobody_has_taken_it(
    shared: Shared,
) -> None:
    leader = shared.lead("a", lease=0.02)
    wait_until(lambda: _remaining(shared) < -0.005, what="the lease to run out")
    assert shared.dispatch(leader) is Outcome.REFUSED
    assert shared.nothing_happened()


def test_nothing_is_sent_once_the_lease_is_kept_for_a_successor(shared: Shared) -> None:
    leader = shared.lead("a")
    shared.ask(release("a", 2, successor="b", reservation=LONG))
    assert shared.dispatch(leader) is Outcome.REFUSED
    assert shared.nothing_happened()


def test_a_record_that_is_gone_or_an_old_copy_is_no_refusal(shared: Shared) -> None:
    leader = shared.lead("a")
    key = shared.leases.keys.of("election", NAME)
    shared.redis.hset(key, "term", leader.term - 1)
    assert shared.dispatch(leader) is Outcome.MISSING
    shared.redis.delete(key)
    assert shared.dispatch(leader) is Outcome.MISSING
    assert shared.nothing_happened()


def test_a_message_that_cannot_be_pushed_leaves_the_state_as_it_was(shared: Shared) -> None:
    leader = shared.lead("a")
    shared.redis.set(QUEUE, "no list")
    with pytest.raises(StoreUnavailable):
        shared.dispatch(leader)
    assert shared.schedule.load().states == {}
    shared.redis.delete(QUEUE)
    assert shared.dispatch(leader) is Outcome.SENT


def test_what_is_forgotten_is_gone(shared: Shared) -> None:
    leader = shared.lead("a")
    shared.dispatch(leader)
    assert shared.schedule.forget(leader, ["tick"]) is Outcome.SENT
    assert shared.schedule.load().states == {}


def test_memory_and_redis_fence_alike(shared: Shared) -> None:
    seed = int(os.environ.get("CELERY_LEADER_TEST_SEED") or random.SystemRandom().randrange(10**9))
    print(f"CELERY_LEADER_TEST_SEED={seed}")
    chance = random.Random(seed)
    memory = FakeStore(time.time)
    granted: list[tuple[str, int, int]] = [("a", 1, 1)]
    seen = set()
    for attempt in range(1, 400):
        holder, (whose, theirs, ours) = chance.choice("abc"), chance.choice(granted[-3:])
        kind = chance.random()
        if kind < 0.5:
            terms = _of_each(memory, shared.leases, lambda _: acquire(holder, attempt))
            if terms is not None and terms not in [each[1:] for each in granted]:
                granted.append((holder, *terms))
        elif kind < 0.7:
            both = (theirs, ours)
            _of_each(memory, shared.leases, lambda i, h=holder: renew(h, attempt, both[i]))
        else:
            successor = chance.choice([None, "a", "b"])
            _of_each(
                memory,
                shared.leases,
                lambda _, h=holder, s=successor: release(h, attempt, successor=s),
            )
        nonce = f"life of {chance.choice([whose, whose, 'd'])}"
        beside = chance.choice([0, 0, 0, -1, 1])
        expected = memory.fenced_write(NAME, nonce, theirs + beside)
        token = FencingToken(nonce, ours + beside)
        found = shared.schedule.dispatch(token, str(attempt), "", "x", []).outcome
        words = {Outcome.SENT: "accepted", Outcome.REFUSED: "refused", Outcome.MISSING: "missing"}
        assert words[found] == expected, f"step {attempt}"
        seen.add(expected)
    assert seen == {"accepted", "refused", "missing"}


def _of_each(memory: LeaseStore, real: LeaseStore, request: object) -> tuple[int, int] | None:
    """Ask both, with what ``request`` makes for each; the terms that were granted."""
    replies = [store.perform([request(i)])[0] for i, store in enumerate((memory, real))]  # type: ignore[operator]
    assert type(replies[0]) is type(replies[1])
    if isinstance(replies[0], Granted) and isinstance(replies[1], Granted):
        return replies[0].term, replies[1].term
    return None


def _remaining(shared: Shared) -> float:
    record = shared.leases.read(NAME)
    assert record is not None
    return record.remaining


@pytest.mark.parametrize("count", ["9" * 400, "1" * 20, "-5", "1e999", '"7"', "null"])
def test_a_run_count_that_is_none_is_not_counted(shared: Shared, count: str) -> None:
    shared.redis.hset(shared.schedule._schedule, "spoiled", f'{{"total_run_count": {count}}}')
    shared.redis.hset(shared.schedule._schedule, "fine", '{"total_run_count": 5}')
    assert shared.schedule.dispatched() in (5, 6)  # of 1e999 the first digit


def test_a_state_that_is_no_text_can_be_written_over_and_removed(shared: Shared) -> None:
    token = shared.lead("a")
    for entry in ("tick", b"\xff\xfe"):
        shared.redis.hset(shared.schedule._schedule, entry, b"\xff\x00\xc3")
    loaded = shared.schedule.load().states
    assert len(loaded) == 2
    sent = shared.schedule.dispatch(token, "tick", loaded["tick"], NEW, [MESSAGE])
    assert sent.outcome is Outcome.SENT
    gone = [entry for entry in loaded if entry != "tick"]
    assert shared.schedule.forget(token, gone) is Outcome.SENT
    assert shared.schedule.load().states == {"tick": NEW}


# -- the least that a beat needs of a broker ------------------------------------------------------

#: What the scripts of the schedule run on messages and states.
DISPATCH_COMMANDS = ["lpush", "publish", "hget", "hset", "hdel", "hgetall"]


#: Each call of a dispatch, by the command that is refused.
CALLS = sorted(
    {
        *re.findall(r"redis\.p?call\('(\w+)'", DISPATCH.by_text([], [])[1]),
        "LPUSH",
        "PUBLISH",
        "PEXPIRE",
    }
)
SEVERAL = [
    MESSAGE,
    Push("PEXPIRE", QUEUE, 60_000),
    Push("LPUSH", f"{QUEUE}.second", b"message"),
    Push("PUBLISH", "/0.news", b"message"),
]
#: Any of them may be refused by a rule, and all that need memory by a full server.
REFUSALS = [
    *([f"-{call.lower()}"] for call in CALLS),
    ["resetkeys", "~celery-leader:*"],
    ["resetkeys", f"~{QUEUE}", f"~{QUEUE}.second"],
    ["resetkeys", "~celery-leader:*", f"~{QUEUE}"],
    ["resetchannels"],
    ["full"],
]

#: Without these none of the message may be out, or some of it is told as refused.
NEEDED = [[f"-{name}"] for name in ("time", "hmget", "hget", "hset", "llen", "lpush", "publish")]


@pytest.fixture
def acl_shared(own_redis: RedisServer, make_store: MakeStore) -> Iterator[Callable[..., Shared]]:
    opened: list[Shared] = []

    def make(without: str = "") -> Shared:
        """The broker that a user has who may do what the README says, but one thing."""
        rules = [rule for rule in acl_rules("celery") if rule != f"+{without}"]
        with own_redis.client() as client:
            client.execute_command("ACL", "SETUSER", "celery", "reset", "on", ">pw", *rules)
        url = f"redis://celery:pw@127.0.0.1:{own_redis.port}/0"
        opened.append(Shared(make_store(url), own_redis.url))
        return opened[-1]

    yield make
    for each in opened:
        each.redis.close()


def every_dispatch(shared: Shared, token: FencingToken) -> None:
    """Everything that a beat has Redis do with its schedule; raises what is refused."""
    queued = [MESSAGE, Push("PEXPIRE", QUEUE, 60_000)]
    told = [Push("PUBLISH", "/0.news", b"message")]
    for entry, pushes in (("queued", queued), ("told", told)):
        sent = shared.schedule.dispatch(token, entry, OLD, NEW, pushes)
        assert sent == Answer(Outcome.SENT)
    assert shared.schedule.anchor(token, {"idle": (OLD, NEW)}) is Outcome.SENT
    assert set(shared.schedule.load().states) == {"queued", "told", "idle"}
    assert shared.schedule.forget(token, ["idle"]) is Outcome.SENT
    assert shared.schedule.dispatched() == 0


def test_a_user_with_the_commands_of_the_readme_can_dispatch_and_lead(
    acl_shared: Callable[..., Shared],
) -> None:
    shared = acl_shared()
    assert {"lpush", "publish", *acl_commands("leases")} <= set(acl_commands("celery"))
    every_dispatch(shared, shared.lead("a"))


@pytest.mark.parametrize("missing", DISPATCH_COMMANDS)
def test_none_of_the_commands_of_a_dispatch_can_be_left_out(
    missing: str, acl_shared: Callable[..., Shared]
) -> None:
    token = acl_shared().lead("a")
    lacking = acl_shared(without=missing)
    with pytest.raises(StoreUnavailable, match="may not do this"):
        every_dispatch(lacking, token)


@pytest.mark.parametrize("refusal", REFUSALS, ids=" ".join)
def test_whichever_call_of_a_dispatch_is_refused_its_message_is_sent_once(
    refusal: list[str], acl_shared: Callable[..., Shared], own_redis: RedisServer
) -> None:
    shared = acl_shared()
    token = shared.lead("a")

    def dispatch() -> Answer:
        return shared.schedule.dispatch(token, "tick", OLD, NEW, SEVERAL)

    with own_redis.client() as client:
        if refusal == ["full"]:
            client.config_set("maxmemory", 1)
        else:
            client.execute_command("ACL", "SETUSER", "celery", *refusal)
        try:
            answer = dispatch()
        except StoreUnavailable:
            # All of it, or the part that makes a tick sent: nothing in between.
            assert client.llen(QUEUE) == client.llen(f"{QUEUE}.second") == 0
            assert shared.redis.hget(shared.schedule._schedule, "tick") is None
        else:
            assert answer.outcome is Outcome.SENT
            # Refused behind the first push, or a call that only another answer needs.
            assert answer.refusals or refusal not in NEEDED
        client.config_set("maxmemory", 0)
        client.execute_command("ACL", "SETUSER", "celery", *acl_rules("celery"))
        assert dispatch().outcome in (Outcome.SENT, Outcome.REPEATED)
        assert client.llen(QUEUE) == 1
        assert client.llen(f"{QUEUE}.second") <= 1
    assert shared.redis.hget(shared.schedule._schedule, "tick") == NEW


def test_a_first_push_that_is_refused_leaves_the_state_it_found(
    acl_shared: Callable[..., Shared], own_redis: RedisServer
) -> None:
    shared = acl_shared()
    token = shared.lead("a")
    shared.schedule.anchor(token, {"tick": (OLD, "found")})
    lacking = acl_shared(without="lpush")
    with pytest.raises(StoreUnavailable, match="may not do this"):
        lacking.schedule.dispatch(token, "tick", "found", NEW, [MESSAGE])
    assert shared.redis.hgetall(shared.schedule._schedule) == {"tick": "found"}


def test_what_is_refused_behind_the_first_push_is_told(acl_shared: Callable[..., Shared]) -> None:
    token = acl_shared().lead("a")
    lacking = acl_shared(without="publish")
    answer = lacking.schedule.dispatch(token, "tick", OLD, NEW, SEVERAL)
    assert answer.outcome is Outcome.SENT
    assert [(each.command, each.target) for each in answer.refusals] == [("PUBLISH", "/0.news")]
