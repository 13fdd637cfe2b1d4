"""What a real Redis says of itself, and that asking it changes nothing."""

from __future__ import annotations

import re
from contextlib import closing

from kombu import Connection

from celery_leader.core.lease import Granted
from celery_leader.ops.probe import Server, _all_calls, probe
from celery_leader.runtime.lease_source import LeaseSource
from celery_leader.runtime.session import RedisSession
from celery_leader.store import schedule_store, scripts
from celery_leader.store.client import RedisClient, Script
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.scripts import Keys
from tests.support.fixtures import SETTING, MakeStore
from tests.support.lease_requests import acquire
from tests.support.readme import acl_rules
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


def look(url: str, prefix: str = "", queue: str | None = "celery") -> Server:
    source = LeaseSource(Connection(url), setting=SETTING, operation_timeout=10.0)
    client = RedisClient(source.connect, setting=SETTING, operation_timeout=10.0)
    keys = Keys("celery", prefix)
    with closing(client):
        session = RedisSession(client, RedisLeaseStore(client, keys), keys, SETTING, source.address)
        return probe(session, ["beat", "worker"], queue)


def test_a_redis_that_refuses_nothing_is_seen_as_it_is(
    redis_url: str, make_store: MakeStore, redis_server: RedisServer
) -> None:
    make_store().perform([acquire("a")])
    with redis_server.client() as client:
        before = {key: client.dump(key) for key in client.scan_iter()}
        server = look(redis_url)
        assert {key: client.dump(key) for key in client.scan_iter()} == before
        assert server.info["redis_version"] == client.info("server")["redis_version"]
    assert server.info["role"] == "master"
    assert server.config["timeout"] == "0"
    assert (server.refused, server.transactions) == ({}, True)
    assert 0 < server.typical_round_trip <= server.longest_round_trip
    assert abs(server.ahead) < 1


def test_what_a_user_may_not_do_is_named(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "guest", "on", ">pw", "~celery-leader:*", "+@all"),
            *("-xadd", "-@admin", "-@dangerous"),
        )
    server = look(f"redis://guest:pw@127.0.0.1:{own_redis.port}/0")
    assert set(server.refused) == {"XADD", "LPUSH", "LLEN"}  # the queue is none of its keys
    assert "may not do this" in server.refused["XADD"]
    assert server.info == {}  # which is one of the dangerous ones, as is CONFIG
    assert server.config == {}


def test_a_user_without_transactions_is_not_taken_for_one_with_all_rights(
    own_redis: RedisServer,
) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "guest", "on", ">pw", "~*", "+@all", "-multi")
    server = look(f"redis://guest:pw@127.0.0.1:{own_redis.port}/0")
    assert (server.refused, server.transactions) == ({}, False)


def test_what_the_users_of_the_readme_may_not_ask_stays_unknown(own_redis: RedisServer) -> None:
    for user in ("leases", "celery"):
        with own_redis.client() as client:
            client.execute_command("ACL", "SETUSER", user, "on", ">pw", *acl_rules(user))
        server = look(f"redis://{user}:pw@127.0.0.1:{own_redis.port}/0", queue=None)
        assert server.refused == {}
        assert server.transactions is (user == "celery")
        assert (server.info, server.config) == ({}, {})
        assert server.typical_round_trip > 0


def test_the_optional_rights_of_the_readme_are_all_that_a_probe_can_use(
    own_redis: RedisServer,
) -> None:
    optional = ["+info", "+config|get", "+multi", "+discard"]
    rules = [*acl_rules("leases"), *optional]
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "leases", "on", ">pw", *rules)
    server = look(f"redis://leases:pw@127.0.0.1:{own_redis.port}/0", queue=None)
    assert (server.refused, server.transactions) == ({}, True)
    assert server.info["role"] == "master"
    assert server.config["timeout"] == "0"


def test_a_user_who_may_begin_a_transaction_and_not_discard_it_is_asked_the_rest(
    own_redis: RedisServer,
) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "guest", "on", ">pw", "~*", "+@all", "-discard")
    server = look(f"redis://guest:pw@127.0.0.1:{own_redis.port}/0")
    assert (server.refused, server.transactions) == ({}, True)
    assert server.info["role"] == "master"
    assert server.config["timeout"] == "0"


def test_a_replica_refuses_what_writes(own_redis: RedisServer) -> None:
    with RedisServer() as replica, replica.client() as client:
        client.replicaof("127.0.0.1", own_redis.port)
        wait_until(
            lambda: client.info("replication")["master_link_status"] == "up", what="replication"
        )
        server = look(replica.url)
    assert server.info["role"] == "slave"
    assert {"HSET", "XADD", "ZADD", "LPUSH"} <= set(server.refused)
    assert not {"HMGET", "XREAD", "ZRANGE"} & set(server.refused)


def test_a_redis_without_the_replicas_it_wants_refuses_what_writes(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.config_set("min-replicas-to-write", 1)
    server = look(own_redis.url)
    assert server.config["min-replicas-to-write"] == "1"
    assert "NOREPLICAS" in server.refused["HSET"]


def test_every_command_that_a_script_runs_is_asked_for() -> None:
    every = [
        value._text
        for module in (scripts, schedule_store)
        for value in vars(module).values()
        if isinstance(value, Script)
    ]
    used = {command for text in every for command in re.findall(r"redis\.call\('(\w+)'", text)}
    asked = {call[0] for call in _all_calls(Keys("celery"), ["beat"], "celery")}
    assert len(used) > 10
    assert used - asked == set()


def test_where_messages_go_elsewhere_nobody_needs_the_right_to_send_them(
    own_redis: RedisServer,
) -> None:
    with own_redis.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "leases", "on", ">pw", "~celery-leader:*", "+@all"),
            "-@dangerous",
        )
    server = look(f"redis://leases:pw@127.0.0.1:{own_redis.port}/0", queue=None)
    assert (server.refused, server.transactions) == ({}, True)


def test_a_cluster_of_one_shard_is_told_from_others_and_works_with_a_hash_tag(
    redis_binary_or_skip: str, make_store: MakeStore
) -> None:
    with RedisServer(("--cluster-enabled", "yes")) as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            wait_until(
                lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"),
                what="the cluster to be complete",
            )
        store = make_store(server.url, prefix="{acme}:")
        assert isinstance(store.perform([acquire("a", priority=1, info="{}")])[0], Granted)
        found = look(server.url, "{acme}:")
        assert (found.shards, found.one_slot, found.refused) == (1, True, {})
        assert not look(server.url, "acme:").one_slot
        assert not look(server.url, "{}acme:").one_slot
