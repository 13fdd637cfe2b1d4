"""What people ask of the elections' Redis: orders, holds, history, register; and what harms none."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable

import pytest

from celery_leader import LeaderElection
from celery_leader.core.candidate_info import MOST_BYTES, CandidateInfo, read_candidate_info
from celery_leader.core.lease import Ended, Granted, Refused, Reply, Request, StepDown
from celery_leader.errors import LeaderError, StoreUnavailable
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.survey import survey
from tests.support.fake_store import FakeStore
from tests.support.fixtures import MakeApp, MakeStore
from tests.support.lease_requests import LONG, NAME, acquire, release, renew
from tests.support.readme import acl_rules
from tests.support.records import candidates_of, held
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

KEYS = {
    kind: f"celery-leader:celery:{kind}:{NAME}"
    for kind in ("election", "history", "candidates", "priorities", "held", "facts")
}
#: What the README says a user of Redis needs for the leases.
LEASE_COMMANDS = [
    "evalsha",
    "eval",
    "time",
    "type",
    "hmget",
    "hset",
    "hget",
    "hgetall",
    "hkeys",
    "hdel",
    "hincrby",
    "zadd",
    "zrem",
    "zscore",
    "zrange",
    "zrevrange",
    "zrangebyscore",
    "zrevrangebyscore",
    "xadd",
    "xread",
    "xrevrange",
    "pexpire",
    "exists",
]


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> RedisLeaseStore | FakeStore:
    if request.param == "memory":
        return FakeStore(time.time)
    make: MakeStore = request.getfixturevalue("make_store")
    return make()


def lead(store: RedisLeaseStore | FakeStore, node: str = "a", attempt: int = 1) -> Granted:
    (reply,) = store.perform([acquire(node, attempt)])
    assert isinstance(reply, Granted), reply
    return reply


# -- orders ---------------------------------------------------------------------------------


def test_an_order_is_told_with_the_next_renewal_and_is_for_that_term_only(
    store: RedisLeaseStore | FakeStore,
) -> None:
    term = lead(store).term
    store.perform([acquire("b")])
    assert store.register.ask(NAME, "b").term == term
    (told,) = store.perform([renew("a", 2, term)])
    assert isinstance(told, Granted)
    assert told.step_down == StepDown("transferred", "b")
    store.perform([release("a", 3, successor="b", reason="transferred")])
    granted = lead(store, "b", 2)
    (told,) = store.perform([renew("b", 3, granted.term)])
    assert isinstance(told, Granted)
    assert told.step_down is None


def test_an_order_to_go_at_once_says_so_and_so_does_a_hold(
    store: RedisLeaseStore | FakeStore,
) -> None:
    term = lead(store).term
    store.register.ask(NAME, None, at_once=True)
    (told,) = store.perform([renew("a", 2, term)])
    assert isinstance(told, Granted)
    assert told.step_down == StepDown("resigned at once", None)
    store.perform([release("a", 3)])
    term = lead(store, attempt=4).term
    # For the node that is held, and for no other.
    store.register.hold(NAME, "b", None, at_once=True)
    (told,) = store.perform([renew("a", 5, term)])
    assert isinstance(told, Granted)
    assert told.step_down is None
    store.register.hold(NAME, "a", None, at_once=True)
    (told,) = store.perform([renew("a", 6, term)])
    assert isinstance(told, Granted)
    assert told.step_down == StepDown("held at once", None)


def test_a_lease_is_not_transferred_to_who_cannot_have_it(
    store: RedisLeaseStore | FakeStore,
) -> None:
    with pytest.raises(LeaderError, match="nobody leads"):
        store.register.ask(NAME, None)
    term = lead(store).term
    store.perform([acquire("b")])
    store.register.hold(NAME, "b", None)
    for node, why in (("a", "leads already"), ("ghost", "no live candidate"), ("b", "is held")):
        with pytest.raises(LeaderError, match=why):
            store.register.ask(NAME, node)
    (told,) = store.perform([renew("a", 2, term)])
    assert isinstance(told, Granted)
    assert told.step_down is None


# -- holds ----------------------------------------------------------------------------------


def test_a_held_node_is_refused_until_it_is_let_in(store: RedisLeaseStore | FakeStore) -> None:
    assert not store.register.hold(NAME, "a", None), "it is no candidate yet"
    (reply,) = store.perform([acquire("a")])
    assert not isinstance(reply, Granted)
    assert store.register.hold(NAME, "a", LONG)
    assert 0 < held(store, NAME)["a"] <= LONG
    lead(store, "b")
    assert store.register.free(NAME, "a")
    assert not store.register.free(NAME, "a")
    store.perform([release("b", 2)])
    lead(store, "a", 2)


def test_a_hold_with_a_duration_ends_by_itself(store: RedisLeaseStore | FakeStore) -> None:
    store.register.hold(NAME, "a", 0.05)
    assert not isinstance(store.perform([acquire("a")])[0], Granted)
    wait_until(lambda: not held(store, NAME), what="the hold to end")
    lead(store, "a", 2)


def test_a_held_leader_keeps_its_lease_and_is_told_to_step_down(
    store: RedisLeaseStore | FakeStore,
) -> None:
    term = lead(store).term
    store.register.hold(NAME, "a", None)
    (told,) = store.perform([renew("a", 2, term)])
    assert isinstance(told, Granted)
    assert told.step_down == StepDown("held", None)


def test_a_lease_is_not_kept_for_a_held_successor(store: RedisLeaseStore | FakeStore) -> None:
    lead(store)
    store.register.hold(NAME, "b", None)
    store.perform([acquire("b", priority=5)])
    store.perform([release("a", 2, successor="b")])
    lead(store, "c")


# -- the history ------------------------------------------------------------------------------


def history(store: RedisLeaseStore | FakeStore) -> list[tuple[str, str | None]]:
    found = (
        store.history_of(NAME, 10)
        if isinstance(store, FakeStore)
        else survey(store, [NAME], 10)[NAME].leaderships
    )
    return [(reign.node, reign.reason) for reign in found]


def test_the_history_says_who_led_and_why_no_longer(store: RedisLeaseStore | FakeStore) -> None:
    lead(store)
    store.perform([release("a", 2, reason="stalled")])
    lead(store, "b")
    store.perform([release("b", 2, successor="c", reason="transferred")])
    lead(store, "c")
    assert history(store) == [("c", None), ("b", "transferred"), ("a", "stalled")]


def test_what_a_leader_could_not_say_is_expired_until_it_is_back(
    store: RedisLeaseStore | FakeStore,
) -> None:
    (reply,) = store.perform([acquire("a", lease_duration=0.03)])
    assert isinstance(reply, Granted)
    wait_until(lambda: store.read(NAME).remaining < 0, what="the lease to expire")  # type: ignore[union-attr]
    assert history(store) == [("a", "expired")]
    record = store.read(NAME)
    assert record is not None
    store.perform([acquire("b", watched=(record.term, record.renewals))])
    assert history(store) == [("b", None), ("a", "expired")]
    for attempt in (2, 3):
        told = Ended(reply.term, "lost contact", 1.0)
        assert isinstance(store.perform([acquire("a", attempt, ended=told)])[0], Refused)
    assert history(store) == [("b", None), ("a", "lost contact")]


def test_lines_of_the_first_format_are_read(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    store = make_store()
    with redis_server.client() as client:
        for kind, node, term in (("elected", "a", 5), ("resigned", "a", 5), ("elected", "b", 6)):
            fields = {"kind": kind, "node": node, "term": term, "successor": ""}
            client.xadd(KEYS["history"], fields)  # type: ignore[arg-type]
        for fields in ({"kind": "elected", "node": "x", "term": "many"}, {b"\xff": b"\xfe"}):
            client.xadd(KEYS["history"], fields)  # type: ignore[arg-type]
    assert history(store) == [("b", "record lost"), ("a", "resigned")]


# -- the register -------------------------------------------------------------------------------


def test_facts_are_asked_for_once_per_life_and_go_with_the_candidate(
    store: RedisLeaseStore | FakeStore,
) -> None:
    info = CandidateInfo(host="h", pid=7, role="beat", settings={"leader_priority": 3})
    (first,) = store.perform([acquire("a")])
    assert isinstance(first, Granted)
    assert not first.info_stored
    (second,) = store.perform([renew("a", 2, first.term, info=info.text())])
    assert isinstance(second, Granted)
    assert second.info_stored
    assert [each.info for each in store.register.candidates(NAME)] == [info]
    (other,) = store.perform([acquire("a", nonce="another life")])
    assert isinstance(other, Refused)
    assert not other.info_stored
    store.perform([release("a", 1, nonce="another life", leaving=True)])
    assert store.register.candidates(NAME), "that was another life of it"
    store.perform([release("a", 3, leaving=True)])
    assert store.register.candidates(NAME) == []


def test_what_is_no_fact_is_left_out() -> None:
    assert read_candidate_info("[" * 100_000) is None
    assert read_candidate_info('{"pid": NaN}') is None
    assert (
        read_candidate_info('{"host": 5, "pid": "x", "versions": [], "settings": {"a": {}}}')
        == CandidateInfo()
    )
    # Kept as it stands; it is made safe where it is shown.
    read = read_candidate_info('{"host": "a\\u001b[2Jb\\ud800"}')
    assert read == CandidateInfo(host="a\x1b[2Jb\ud800")
    assert CandidateInfo(host="x" * MOST_BYTES).text() == ""


def test_a_candidate_says_no_password(make_app: MakeApp, redis_server: RedisServer) -> None:
    url = f"redis://:s3cret@127.0.0.1:{redis_server.port}/0"
    info = runtime_of(make_app(url)).participation._info("worker", 0)
    assert "s3cret" not in info.text()
    assert info.settings["leader_lease_duration"] == 25.0


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["election", "history", "candidates", "priorities", "facts"])
def test_a_key_of_a_wrong_type_is_named(
    kind: str, make_store: MakeStore, redis_server: RedisServer
) -> None:
    store = make_store()
    with redis_server.client() as client:
        client.lpush(KEYS[kind], "x")
    (reply,) = store.perform([acquire("a", priority=1, info="{}")])
    assert isinstance(reply, StoreUnavailable)
    assert KEYS[kind] in str(reply)
    assert "list" in str(reply)


def test_no_value_in_any_key_is_more_than_one_clear_refusal(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    seed = int(os.environ.get("CELERY_LEADER_TEST_SEED") or random.SystemRandom().randrange(10**9))
    print(f"CELERY_LEADER_TEST_SEED={seed}")
    chance = random.Random(seed)
    store = make_store()
    refusals = 0
    for _ in range(150):
        with redis_server.client() as client:
            client.delete(*KEYS.values())
            term = lead(store).term
            store.perform([acquire("b", priority=1, info='{"host":"h"}')])
            for kind in chance.sample(sorted(KEYS), 2):
                _spoil(client, kind, chance)
        for act in (
            lambda: store.perform([acquire("b", 2, from_missing=True)]),
            lambda: store.perform([renew("a", 2, term, preempted=True)]),
            lambda: store.read(NAME),
            lambda: store.register.candidates(NAME),
            lambda: survey(store, [NAME], 10)[NAME].leaderships,
            lambda: store.register.ask(NAME, "b"),
            lambda: store.register.hold(NAME, "c", 5),
            lambda: held(store, NAME),
            lambda: store.register.free(NAME, "c"),
            lambda: store.perform([release("a", 3)]),
        ):
            try:
                said = act()
                found = said if isinstance(said, list) else []
                texts = [str(each) for each in found if isinstance(each, StoreUnavailable)]
            except LeaderError as exc:
                texts = [str(exc)] if isinstance(exc, StoreUnavailable) else []
            for text in texts:
                refusals += 1
                assert any(key in text for key in KEYS.values()), text
        with contextlib.suppress(StoreUnavailable):  # of a history of another type
            store.announcements({NAME: "0-0"}, 0.001, None)
    assert refusals, "some of it was to be refused"


def _bytes(chance: random.Random) -> bytes:
    return chance.choice(
        [
            chance.randbytes(chance.randint(0, 40)),
            str(chance.randint(-(10**20), 10**20)).encode(),
            chance.choice([b"nan", b"inf", b"-1", b"1e400", b"0x10", b"{}", b"x" * 5000]),
        ]
    )


def _spoil(client: object, kind: str, chance: random.Random) -> None:
    key = KEYS[kind]
    send = client.execute_command  # type: ignore[attr-defined]
    if chance.random() < 0.3:
        send("DEL", key)
        send(*chance.choice([("SET", key, "x"), ("LPUSH", key, "x"), ("SADD", key, "x")]))
    elif kind == "history":
        send("XADD", key, "*", *(_bytes(chance) for _ in range(2 * chance.randint(1, 4))))
        send("XADD", key, "*", "kind", "elected", "node", _bytes(chance), "term", _bytes(chance))
    elif kind == "candidates":
        score = chance.choice(["inf", "-inf", "1e300", "-5"])
        send("ZADD", key, score, _bytes(chance) or b"x")
    else:
        fields = ["holder", "term", "expires_at", "state", "event", "renewals", "attempt", "asked"]
        field = chance.choice([*fields, "a", "b", _bytes(chance)])
        send("HSET", key, field, _bytes(chance))


# -- the least that a user of Redis needs ---------------------------------------------------------


def every_verb(store: RedisLeaseStore) -> None:
    """Everything that a candidate and an operator do; raises what is refused."""

    def do(*requests: Request) -> Reply:
        (reply,) = store.perform(requests)
        if isinstance(reply, StoreUnavailable):
            raise reply
        return reply

    store.close()
    reply = do(acquire("a", priority=1, info="{}"))
    assert isinstance(reply, Granted)
    do(acquire("b", info="{}", ended=Ended(1, "lost contact", 1.0)))
    do(acquire("c", 1, nonce="c", info="{}", priority=2))
    do(renew("a", 2, reply.term, preempted=True))
    store.announcements({NAME: "0-0"}, 0.001, None)
    store.read(NAME)
    store.register.candidates(NAME)
    survey(store, [NAME], 5)
    store.register.hold(NAME, "d", 5)
    store.register.hold(NAME, "e", None)
    held(store, NAME)
    store.register.ask(NAME, "b")
    store.register.free(NAME, "d")
    do(release("c", 2, nonce="c", leaving=True))
    do(release("a", 3, leaving=True))
    do(release("never heard of", 1, leaving=True))


@pytest.fixture
def acl_store(
    own_redis: RedisServer, make_store: MakeStore
) -> Callable[[list[str]], RedisLeaseStore]:
    def make(commands: list[str]) -> RedisLeaseStore:
        with own_redis.client() as client:
            client.flushall()
            client.execute_command(
                "ACL", "SETUSER", "leases", "reset", "on", ">pw", "~celery-leader:*", "-@all",
                *(f"+{command}" for command in commands),
            )  # fmt: skip
        return make_store(f"redis://leases:pw@127.0.0.1:{own_redis.port}/0")

    return make


def test_a_user_with_the_commands_of_the_readme_can_do_all_there_is(
    acl_store: Callable[[list[str]], RedisLeaseStore],
) -> None:
    commands = [f"+{command}" for command in LEASE_COMMANDS]
    assert acl_rules("leases") == ["~celery-leader:*", "-@all", *commands]
    every_verb(acl_store(LEASE_COMMANDS))


@pytest.mark.parametrize("missing", [each for each in LEASE_COMMANDS if each != "type"])
def test_none_of_these_commands_can_be_left_out(
    missing: str, acl_store: Callable[[list[str]], RedisLeaseStore]
) -> None:
    store = acl_store([command for command in LEASE_COMMANDS if command != missing])
    with pytest.raises(StoreUnavailable, match="may not do this"):
        every_verb(store)


def test_type_is_what_names_a_key_of_a_wrong_type(
    acl_store: Callable[[list[str]], RedisLeaseStore], own_redis: RedisServer
) -> None:
    for commands, named in (
        (LEASE_COMMANDS, True),
        ([each for each in LEASE_COMMANDS if each != "type"], False),
    ):
        store = acl_store(commands)
        with own_redis.client() as client:
            client.set(KEYS["history"], "x")
        with pytest.raises(StoreUnavailable) as refusal:
            survey(store, [NAME], 1)
        assert (KEYS["history"] in str(refusal.value)) is named


# -- with real candidates ----------------------------------------------------------------------


def test_a_leader_hands_over_when_asked_and_steps_down_when_held(make_app: MakeApp) -> None:
    elections = [LeaderElection(make_app(), NAME, node=node).start() for node in ("a", "b")]
    a, b = elections
    if not a.wait_until_leader(timeout=10):
        a, b = b, a
    asker = runtime_of(make_app())
    wait_until(lambda: len(candidates_of(asker, NAME)) == 2, what="both to be candidates")
    done = asker.orders.hand_over(NAME, b.node, timeout=30)
    assert (done.former, done.leader) == (a.node, b.node)
    wait_until(b.is_leader, what="the other to know")
    assert not a.is_leader()
    assert asker.orders.hold(b.node, [NAME]) == {NAME: True}
    assert a.wait_until_leader(timeout=30)
    with asker.redis.session() as session:
        reasons = [reign.reason for reign in survey(session.store, [NAME], 3)[NAME].leaderships]
    assert reasons == [None, "held", "transferred"]
    a.resign()
    assert [each.node for each in candidates_of(asker, NAME)] == [b.node], "who goes leaves at once"
    assert asker.orders.free(b.node, [NAME]) == {NAME: True}
    assert b.wait_until_leader(timeout=30)


def test_who_is_alone_and_asked_to_resign_is_elected_again(make_app: MakeApp) -> None:
    election = LeaderElection(make_app(), NAME, node="a").start()
    assert election.wait_until_leader(timeout=10)
    done = runtime_of(make_app()).orders.hand_over(NAME, timeout=60)
    assert (done.former, done.leader) == ("a", "a")
    assert done.term is not None
    assert done.term > done.former_term
