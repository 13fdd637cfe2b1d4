"""``leader_wait_replicas``: a lease is granted when that many replicas have it, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from celery_leader.core.lease import Granted, Refused, Reply
from celery_leader.errors import StoreUnavailable
from celery_leader.store.lease_store import RedisLeaseStore
from tests.sentinel.watched import EAGER, confirms, replica_of
from tests.support.fixtures import SETTING, MakeStore
from tests.support.lease_requests import NAME, acquire, release, renew
from tests.support.redis_server import RedisServer

RECORD = f"celery-leader:celery:election:{NAME}"
IMPATIENT = 1.0  # seconds for an answer, where no replica is going to give one


@pytest.fixture
def master(redis_binary_or_skip: str) -> Iterator[RedisServer]:
    """A Redis that becomes a master with its first replica, which it does not keep waiting."""
    with RedisServer(EAGER) as master:
        yield master


@pytest.fixture
def replica(master: RedisServer) -> Iterator[RedisServer]:
    """A replica of ``master`` that has caught up with it."""
    with replica_of(master.port) as replica:
        confirms(master, 1)
        yield replica


def only(replies: list[Reply | StoreUnavailable]) -> Reply | StoreUnavailable:
    (reply,) = replies
    return reply


def granted(store: RedisLeaseStore, *requests: object) -> list[bool]:
    return [isinstance(reply, Granted) for reply in store.perform(list(requests))]  # type: ignore[arg-type]


def test_a_lease_that_is_granted_is_on_the_replica(
    master: RedisServer, replica: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(master.url, wait_replicas=1)
    reply = only(store.perform([acquire("a")]))
    assert isinstance(reply, Granted)
    with replica.client() as client:
        assert int(client.hget(RECORD, "term")) == reply.term
    assert isinstance(only(store.perform([renew("a", 2, term=reply.term)])), Granted)
    with replica.client() as client:
        assert client.hget(RECORD, "renewals") == b"1"


def test_what_no_replica_has_is_neither_granted_nor_refused(
    master: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(master.url, wait_replicas=1, operation_timeout=IMPATIENT)
    doubt = only(store.perform([acquire("a")]))
    assert isinstance(doubt, StoreUnavailable)
    assert str(doubt) == (
        f"leader_wait_replicas is 1, and 0 replica(s) of the Redis in {SETTING} confirmed the lease"
    )
    with master.client() as client:
        assert client.hget(RECORD, "holder") == b"a", "it is in doubt, not undone"
    # Another is told whose it is: that needs no replica.
    assert isinstance(only(store.perform([acquire("b")])), Refused)


def test_a_replica_that_hangs_confirms_nothing_and_the_answer_comes_in_time(
    master: RedisServer, replica: RedisServer, make_store: MakeStore
) -> None:
    store = make_store(master.url, wait_replicas=1)
    impatient = make_store(master.url, wait_replicas=1, operation_timeout=IMPATIENT)
    reply = only(store.perform([acquire("a")]))
    assert isinstance(reply, Granted)
    replica.pause()
    assert granted(impatient, renew("a", 2, term=reply.term)) == [False]
    replica.resume()
    confirms(master, 1)
    assert granted(store, renew("a", 3, term=reply.term)) == [True], "asked again, it is ours"


def test_two_replicas_are_not_one(
    master: RedisServer, replica: RedisServer, make_store: MakeStore
) -> None:
    one = make_store(master.url, wait_replicas=1)
    two = make_store(master.url, wait_replicas=2)
    impatient = make_store(master.url, wait_replicas=2, operation_timeout=IMPATIENT)
    assert granted(impatient, acquire("a")) == [False]
    assert granted(one, acquire("a", 2)) == [True]
    with replica_of(master.port):
        confirms(master, 2)
        assert granted(two, acquire("a", 3)) == [True]


def test_of_several_elections_only_what_was_granted_is_in_doubt(
    master: RedisServer, make_store: MakeStore
) -> None:
    plain = make_store(master.url)
    assert granted(plain, acquire("a")) == [True]
    store = make_store(master.url, wait_replicas=1, operation_timeout=IMPATIENT)
    refused, doubt, released = store.perform(
        [acquire("b"), acquire("b", election="other"), release("c", 1)]
    )
    assert isinstance(refused, Refused)
    assert isinstance(doubt, StoreUnavailable)
    assert not isinstance(released, StoreUnavailable)


def test_a_connection_that_has_written_nothing_vouches_for_nothing(
    master: RedisServer, replica: RedisServer, make_store: MakeStore
) -> None:
    client = make_store(master.url).client
    with ExitStack() as stack:
        stack.callback(client.close)
        assert client.call_all([["SET", "a-write", 2]]) == [b"OK"]
        client.wait_for_replicas(1)
        client.close()
        with pytest.raises(StoreUnavailable, match="leader_wait_replicas is 1, and 0 replica"):
            client.wait_for_replicas(1)
