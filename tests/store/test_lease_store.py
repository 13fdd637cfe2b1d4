"""What only real Redis can show: keys, scripts, round trips, and ways to be unavailable."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from redis.exceptions import ResponseError

from celery_leader.core.lease import Granted, LeaseStore, Missing, Refused
from celery_leader.errors import StoreUnavailable
from celery_leader.store.refusals import in_words
from tests.store.conftest import Wake
from tests.support.fixtures import PREFIX, SETTING, MakeStore
from tests.support.lease_requests import NAME, acquire, release, renew
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer, free_port
from tests.support.strange_servers import http_server, mute_server
from tests.support.waiting import wait_until

RECORD = f"celery-leader:celery:election:{NAME}"
IMPATIENT = 0.3
BOUND = 20.0  # seconds; far above every timeout in use, far below redis-py's own retries


def why_unavailable(act: Callable[[], object]) -> str:
    """The one sentence a user reads when ``act`` cannot be done, which takes bounded time."""
    started = time.monotonic()
    try:
        answer = act()
    except StoreUnavailable as exc:
        reason = str(exc)
    else:
        assert isinstance(answer, list), answer
        assert isinstance(answer[0], StoreUnavailable), answer
        reason = str(answer[0])
    assert time.monotonic() - started < BOUND
    assert SETTING in reason
    assert "\n" not in reason
    assert "Traceback" not in reason
    return reason


# -- what is written -----------------------------------------------------------------------


def test_a_record_has_no_time_to_live(make_store: MakeStore, redis_server: RedisServer) -> None:
    store = make_store()
    store.perform([acquire("a", lease_duration=5)])
    with redis_server.client() as client:
        assert client.ttl(RECORD) == -1
        store.perform([release("a", 2, successor="b")])
        assert client.ttl(RECORD) == -1


def test_a_term_is_written_in_full_digits(make_store: MakeStore, redis_server: RedisServer) -> None:
    store = make_store()
    (reply,) = store.perform([acquire("a")])
    assert isinstance(reply, Granted)
    with redis_server.client() as client:
        assert client.hget(RECORD, "term") == str(reply.term).encode()
        for field in ("expires_at", "elected_at", "attempt", "renewals", "lease"):
            assert client.hget(RECORD, field).isdigit(), field
        (_, fields), *_ = client.xrange(f"celery-leader:celery:history:{NAME}")
        assert fields[b"term"] == str(reply.term).encode()


def test_the_keys_are_the_public_ones(make_store: MakeStore, redis_server: RedisServer) -> None:
    store = make_store(namespace="shop")
    store.perform([acquire("a")])
    store.perform([release("a", 2)])
    with redis_server.client() as client:
        assert sorted(client.keys("*")) == [
            b"celery-leader:shop:candidates:beat",
            b"celery-leader:shop:election:beat",
            b"celery-leader:shop:history:beat",
        ]


def test_every_key_carries_the_prefix_once(
    make_store: MakeStore, redis_server: RedisServer, wake: Wake
) -> None:
    store = make_store(prefix=PREFIX)
    (reply,) = store.perform([acquire("a")])
    assert isinstance(reply, Granted)
    store.perform([renew("a", 2, reply.term)])
    store.perform([release("a", 3)])
    assert store.announcements({NAME: "0-0"}, 1, wake.fd)
    assert store.register.candidates(NAME)
    assert store.read(NAME)
    with redis_server.client() as client:
        keys = client.keys("*")
    assert len(keys) == 3
    assert all(key.startswith(b"acme:celery-leader:") for key in keys)


def test_namespaces_and_prefixes_do_not_share_leases(make_store: MakeStore) -> None:
    stores = [make_store(), make_store(namespace="shop"), make_store(prefix=PREFIX)]
    for store in stores:
        assert isinstance(store.perform([acquire("a")])[0], Granted)


def test_databases_do_not_share_leases(make_store: MakeStore, redis_url: str) -> None:
    other = make_store(redis_url.removesuffix("/0") + "/1")
    assert isinstance(make_store().perform([acquire("a")])[0], Granted)
    assert isinstance(other.perform([acquire("b")])[0], Granted)


def test_a_record_outlives_keys_that_have_a_time_to_live_when_memory_is_short(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(own_redis.url)
    store.perform([acquire("a", lease_duration=5)])
    with own_redis.client() as client:
        memory = client.info("memory")["used_memory"] + 2_000_000
        client.config_set("maxmemory", memory)
        client.config_set("maxmemory-policy", "volatile-ttl")
        for number in range(400):
            client.set(f"filler{number}", b"x" * 20_000, ex=3600)
        assert client.info("stats")["evicted_keys"] > 0
        assert client.exists(RECORD)


def test_a_damaged_record_is_none_to_candidates_and_its_key_is_named_to_people(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    store = make_store()
    store.perform([acquire("a")])
    with redis_server.client() as client:
        client.hset(RECORD, "state", "dozing")
    (reply,) = store.perform([acquire("b")])
    assert isinstance(reply, Missing)
    assert reply.damaged
    with pytest.raises(StoreUnavailable, match=RECORD):
        store.read(NAME)


# -- scripts and round trips ------------------------------------------------------------------


def test_scripts_that_redis_has_forgotten_are_sent_again(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    store = make_store()
    (first,) = store.perform([acquire("a")])
    assert isinstance(first, Granted)
    with redis_server.client() as client:
        client.script_flush()
    (second,) = store.perform([renew("a", 2, first.term)])
    assert isinstance(second, Granted)
    assert store.read(NAME).renewals == 1  # type: ignore[union-attr]


def test_a_batch_in_which_redis_knows_some_scripts_only_is_answered_in_order(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    store = make_store()
    with redis_server.client() as client:
        client.script_flush()
    store.perform([acquire("a")])
    replies = store.perform([acquire("b"), release("a", 2), acquire("c")])
    # The release was unknown and so came last: an answer is to its own request all the same.
    assert isinstance(replies[0], Refused)
    assert type(replies[1]).__name__ == "Released"
    assert isinstance(replies[2], Refused)
    assert isinstance(store.perform([acquire("c", 2)])[0], Granted)


def test_several_requests_take_one_round_trip(
    make_store: MakeStore, redis_server: RedisServer, redis_url: str
) -> None:
    with Proxy(redis_server.port) as proxy:
        store = make_store(proxy.url)
        replies = store.perform([acquire("a", election="first")])
        assert isinstance(replies[0], Granted)
        before = proxy.round_trips
        elections = [f"election{number}" for number in range(8)]
        replies = store.perform([acquire("a", election=name) for name in elections])
        assert all(isinstance(reply, Granted) for reply in replies)
        assert proxy.round_trips == before + 1
        terms = [reply.term for reply in replies if isinstance(reply, Granted)]
        store.perform(
            [renew("a", 2, term, election=name) for name, term in zip(elections, terms)]  # noqa: B905
        )
        before = proxy.round_trips
        store.perform(
            [renew("a", 3, term, election=name) for name, term in zip(elections, terms)]  # noqa: B905
        )
        assert proxy.round_trips == before + 1


def test_a_reply_lost_after_the_write_was_done_is_made_up_for_by_asking_again(
    make_store: MakeStore, redis_server: RedisServer, redis_url: str
) -> None:
    direct = make_store()
    with Proxy(redis_server.port) as proxy:
        store = make_store(proxy.url, operation_timeout=2.0)
        store.perform([acquire("a", election="warm-up")])
        proxy.lose_replies(1, silently=True)
        why_unavailable(lambda: store.perform([acquire("a")]))
        record = direct.read(NAME)
        assert record is not None
        assert record.holder == "a"
        (again,) = store.perform([acquire("a", 2)])
        assert isinstance(again, Granted)
        assert again.term == record.term


def test_a_store_uses_one_connection_however_it_is_used(
    own_redis: RedisServer, make_store: MakeStore, wake: Wake
) -> None:
    store = make_store(own_redis.url)
    for attempt in range(1, 6):
        store.perform([acquire("a", attempt), acquire("a", attempt, election="other")])
        store.announcements({NAME: "0-0"}, 1, wake.fd)
        store.register.candidates(NAME)
        store.read(NAME)
    with own_redis.client() as client:
        others = [c for c in client.client_list() if c["id"] != str(client.client_id())]
    assert len(others) == 1


def test_a_wait_that_was_woken_leaves_no_blocked_client_behind(
    own_redis: RedisServer, make_store: MakeStore, wake: Wake
) -> None:
    store = make_store(own_redis.url)
    (reply,) = store.perform([acquire("a")])
    assert isinstance(reply, Granted)
    wake.up()
    assert store.announcements({NAME: reply.cursor}, 60, wake.fd) == []
    with own_redis.client() as client:
        wait_until(
            lambda: client.info("clients")["blocked_clients"] == 0,
            what="Redis to drop the wait that was given up",
        )
    assert isinstance(store.perform([renew("a", 2, reply.term)])[0], Granted)


# -- ways to be unavailable ---------------------------------------------------------------------


def all_methods(store: LeaseStore, wake: Wake) -> list[Callable[[], object]]:
    return [
        lambda: store.perform([acquire("a")]),
        lambda: store.perform([renew("a", 1, 7), release("a", 2)]),
        lambda: store.announcements({NAME: "0-0"}, IMPATIENT, wake.fd),
        lambda: store.read(NAME),
        lambda: store.register.candidates(NAME),
    ]


def test_a_redis_that_is_down_is_named_and_not_waited_for(
    make_store: MakeStore, wake: Wake
) -> None:
    store = make_store(f"redis://127.0.0.1:{free_port()}/0", operation_timeout=IMPATIENT)
    for act in all_methods(store, wake):
        assert "cannot be reached" in why_unavailable(act)


def test_a_server_that_accepts_and_never_answers_is_not_waited_for(
    make_store: MakeStore, wake: Wake
) -> None:
    with mute_server() as server:
        store = make_store(server.url, operation_timeout=IMPATIENT)
        for act in all_methods(store, wake):
            assert "cannot be reached" in why_unavailable(act)


def test_a_server_that_is_not_redis_is_called_so(make_store: MakeStore, wake: Wake) -> None:
    with http_server() as server:
        store = make_store(server.url, operation_timeout=10.0)
        for act in all_methods(store, wake):
            assert "is not Redis" in why_unavailable(act)


@pytest.mark.parametrize("secret", [":wrong@", "nobody:wrong@", ""])
def test_a_wrong_or_missing_password_is_called_so(
    redis_binary_or_skip: str, make_store: MakeStore, wake: Wake, secret: str
) -> None:
    with RedisServer(("--requirepass", "secret"), password="secret") as server:
        store = make_store(f"redis://{secret}127.0.0.1:{server.port}/0")
        for act in all_methods(store, wake):
            reason = why_unavailable(act)
            assert "password" in reason
            assert "secret" not in reason
            assert "wrong" not in reason.replace("WRONGPASS", "")
        right = make_store(server.url)
        assert isinstance(right.perform([acquire("a")])[0], Granted)


def test_a_user_that_may_not_run_scripts_is_told_so(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "guest", "on", ">pw", "~*", "+@all", "-@scripting")
    store = make_store(f"redis://guest:pw@127.0.0.1:{own_redis.port}/0")
    reason = why_unavailable(lambda: store.perform([acquire("a")]))
    assert "may not do this" in reason


@pytest.mark.parametrize(
    "said",
    [
        "The user executing the script can't run this command or subcommand script: 7ef3, on",
        "ACL failure in script: User guest has no permissions to run the 'xadd' command script:",
    ],
    ids=["Redis 7.0", "Redis 8.2"],
)
def test_a_right_that_a_script_lacks_is_named_as_such(said: str) -> None:
    assert "the Redis user in broker_url may not do this" in str(
        in_words(ResponseError(said), "broker_url")
    )


def test_a_read_only_replica_is_called_so_and_its_address_is_looked_up_again(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    replica_of = ("--replicaof", "127.0.0.1", str(own_redis.port))
    with RedisServer(replica_of) as replica:
        with replica.client() as client:
            wait_until(
                lambda: client.info("replication")["master_link_status"] == "up",
                what="the replica to be in step",
            )
            store = make_store(replica.url)
            reason = why_unavailable(lambda: store.perform([acquire("a")]))
            assert "read-only replica" in reason
            assert store.read(NAME) is None, "reading works on a replica"
            before = {each["id"] for each in client.client_list(_type="normal")}
            store.perform([acquire("a")])
            store.read(NAME)
            after = {each["id"] for each in client.client_list(_type="normal")}
            assert after - before, "it is to connect anew, perhaps to another server"
            client.execute_command("REPLICAOF", "NO", "ONE")
        assert isinstance(store.perform([acquire("a", 2)])[0], Granted)


def test_a_full_redis_is_called_so(own_redis: RedisServer, make_store: MakeStore) -> None:
    store = make_store(own_redis.url)
    assert isinstance(store.perform([acquire("a")])[0], Granted)
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        reason = why_unavailable(lambda: store.perform([acquire("a", 2)]))
        assert "full" in reason
        assert "maxmemory" in reason
        assert store.read(NAME) is not None
        client.config_set("maxmemory", "0")
    assert isinstance(store.perform([acquire("a", 3)])[0], Granted)


def test_what_only_somebody_can_mend_is_told_from_what_time_mends(
    redis_binary_or_skip: str, own_redis: RedisServer, make_store: MakeStore
) -> None:
    def fails(url: str) -> bool:
        try:
            answer = make_store(url).perform([acquire("a")])[0]
        except StoreUnavailable as exc:
            return exc.lasting
        assert isinstance(answer, StoreUnavailable), answer
        return answer.lasting

    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "guest", "on", ">pw", "~x:*", "+@all")
    at = f"127.0.0.1:{own_redis.port}/0"
    assert fails(f"redis://guest:wrong@{at}")
    assert fails(f"redis://guest:pw@{at}")
    assert not fails(f"redis://127.0.0.1:{free_port()}/0")
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        assert not fails(own_redis.url)
        client.config_set("maxmemory", "0")
        client.replicaof("127.0.0.1", free_port())
        assert not fails(own_redis.url)


def test_one_refused_request_does_not_spoil_the_others(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    store = make_store()
    with redis_server.client() as client:
        client.set("celery-leader:celery:election:spoilt", "not a hash")
    replies = store.perform(
        [acquire("a"), acquire("a", election="spoilt"), acquire("a", election="other")]
    )
    assert isinstance(replies[0], Granted)
    assert isinstance(replies[1], StoreUnavailable)
    assert SETTING in str(replies[1])
    assert isinstance(replies[2], Granted)


def test_a_redis_that_hangs_is_not_waited_for_and_answers_again_when_it_goes_on(
    own_redis: RedisServer, make_store: MakeStore, wake: Wake
) -> None:
    store = make_store(own_redis.url, operation_timeout=IMPATIENT)
    wait_until(lambda: _is_granted(store, 1), what="the first answer")
    own_redis.pause()
    try:
        for act in all_methods(store, wake):
            why_unavailable(act)
    finally:
        own_redis.resume()
    attempts = iter(range(100, 10_000))
    wait_until(lambda: _is_granted(store, next(attempts)), what="an answer")


def test_a_redis_that_was_restarted_answers_over_a_new_connection(
    own_redis: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(own_redis.url)
    assert _is_granted(store, 1)
    own_redis.restart()
    attempts = iter(range(2, 10_000))
    wait_until(lambda: _is_granted(store, next(attempts)), what="an answer")
    assert store.read(NAME).transitions == 1  # type: ignore[union-attr]


def test_a_connection_that_dies_while_waiting_for_news_is_reported(
    own_redis: RedisServer, make_store: MakeStore, wake: Wake
) -> None:
    store = make_store(own_redis.url)
    assert _is_granted(store, 1)
    cursor = store.read(NAME).cursor  # type: ignore[union-attr]
    own_redis.kill()
    why_unavailable(lambda: store.announcements({NAME: cursor}, 60, wake.fd))


def _is_granted(store: LeaseStore, attempt: int) -> bool:
    try:
        return isinstance(store.perform([acquire("a", attempt)])[0], Granted)
    except StoreUnavailable:
        return False
