"""What ``leader_wait_replicas`` buys, shown by what happens without it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator

import pytest

from celery_leader import LeaderElection
from celery_leader.core.lease import Granted
from celery_leader.runtime.app_runtime import runtime_of
from tests.sentinel.watched import EAGER, confirms, replica_of
from tests.support.fixtures import MakeApp, MakeStore
from tests.support.lease_requests import NAME, acquire
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

RECORD = f"celery-leader:celery:election:{NAME}"
LEASE = 4.0
ROUNDS = 16


@pytest.fixture
def master(redis_binary_or_skip: str) -> Iterator[RedisServer]:
    with RedisServer(EAGER) as master:
        yield master


@pytest.fixture
def link(master: RedisServer) -> Iterator[Proxy]:
    """The way from the replica to the master."""
    with Proxy(master.port) as link:
        yield link


@pytest.fixture
def replica(master: RedisServer, link: Proxy) -> Iterator[RedisServer]:
    with replica_of(link.port) as replica:
        confirms(master, 1)
        yield replica


def promote(replica: RedisServer) -> None:
    """As a Sentinel does."""
    with replica.client() as client:
        client.replicaof("NO", "ONE")


def both_lead(one: LeaderElection, other: LeaderElection) -> bool:
    """Whether both believe at one moment."""
    return one.is_leader() and other.is_leader() and one.is_leader()


@pytest.mark.parametrize("wait_replicas", [0, 1])
def test_a_leader_whose_master_is_cut_off_stops_before_another_leads_where_it_waits_for_replicas(
    master: RedisServer,
    replica: RedisServer,
    link: Proxy,
    make_app: MakeApp,
    wait_replicas: int,
) -> None:
    settings = {"leader_lease_duration": LEASE, "leader_wait_replicas": wait_replicas}
    with LeaderElection(make_app(master.url, **settings), NAME, node="cut off") as there:
        assert there.wait_until_leader(60)
        link.stall()
        promote(replica)
        # At the new master nobody else leads, so it has no replica to wait for.
        settings["leader_wait_replicas"] = 0
        with LeaderElection(make_app(replica.url, **settings), NAME, node="next") as here:
            if wait_replicas == 0:
                wait_until(lambda: both_lead(there, here), 60.0, "the harm to be seen")
                return
            deadline = time.monotonic() + 60
            while not here.is_leader():
                assert not both_lead(there, here)
                assert time.monotonic() < deadline, "nobody leads"
                time.sleep(0.001)
            assert not there.is_leader()
            # The old master goes on granting: it is not believed.
            still_there = time.monotonic() + LEASE
            while time.monotonic() < still_there:
                assert not both_lead(there, here)
                time.sleep(0.001)


@pytest.mark.parametrize("wait_replicas", [0, 1])
def test_a_lease_that_is_believed_is_there_after_the_failover_where_it_waits_for_replicas(
    master: RedisServer,
    replica: RedisServer,
    link: Proxy,
    make_store: MakeStore,
    wait_replicas: int,
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    lagging = chance.sample([True, False] * (ROUNDS // 2), ROUNDS)
    believed = lost = 0
    for number, lags in enumerate(lagging):
        store = make_store(master.url, wait_replicas=wait_replicas, operation_timeout=2.0)
        if lags:
            link.stall()
        (reply,) = store.perform([acquire(f"candidate {number}")])
        link.refuse()
        promote(replica)
        with replica.client() as client, master.client() as at_master:
            if isinstance(reply, Granted):
                believed += 1
                lost += client.hget(RECORD, "term") != str(reply.term).encode()
            link.restore()
            at_master.delete(RECORD)
            client.replicaof("127.0.0.1", str(link.port))
        confirms(master, 1)
    print(f"{ROUNDS} failovers, {ROUNDS // 2} with a lag: {believed} believed, {lost} lost")
    if wait_replicas:
        assert lost == 0
        assert 0 < believed <= ROUNDS // 2
    else:
        assert believed == ROUNDS
        assert lost >= ROUNDS // 2


def test_nobody_leads_until_a_replica_is_there_and_a_leader_without_one_stops(
    master: RedisServer, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celery_leader")
    app = make_app(master.url, leader_wait_replicas=1, leader_lease_duration=6.0)
    with LeaderElection(app, NAME) as election:
        wait_until(lambda: "leader_wait_replicas is 1, and 0" in caplog.text, what="the warning")
        assert not election.is_leader()
        with replica_of(master.port) as replica:
            assert election.wait_until_leader(60)
            first = election.check()
            replica.pause()
            wait_until(lambda: not election.is_leader(), what="the leader to stop")
            assert f"{NAME}: deposed, term {first}" in caplog.text
            replica.resume()
            assert election.wait_until_leader(60)
            assert election.check() > first
    with runtime_of(app).redis.session() as session:
        record = session.store.read(NAME)
        assert record is not None
        assert not record.led, "resigned: that needs no replica"
