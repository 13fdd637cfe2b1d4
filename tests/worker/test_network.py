"""What a worker makes of lost connections, silence, and a Redis that goes away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet, Process
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """A network between a worker and Redis that the test can break."""
    with Proxy(redis_server.port) as proxy:
        yield proxy


def far_leader(fleet: Fleet, proxy: Proxy) -> Process:
    """A worker that leads from behind the proxy."""
    leader = fleet.worker("far", broker=proxy.url).says(" ready.")
    assert fleet.leader() is leader
    leader.says("consuming from celery.leader")
    return leader


def test_a_leader_whose_connections_are_torn_down_keeps_its_lease_and_its_queue(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet(probe=True)
    leader = far_leader(fleet, proxy)
    other = fleet.worker("near").says(" ready.")
    fleet.takes_part(other)
    for round_ in range(2):
        taken = proxy.accepted
        proxy.reset()
        wait_until(lambda taken=taken: proxy.accepted >= taken + 2, what="new connections")
        seen = fleet.app.tasks["fleet.lead"].delay(f"round {round_}").get(timeout=30)
        assert seen["node"] == leader.node
        fleet.outlives_its_lease()
    assert len(fleet.history()) == 1
    fleet.assert_beliefs_never_overlapped()


def test_a_leader_cut_off_for_longer_than_its_lease_is_deposed_and_comes_back_as_a_candidate(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet(probe=True)
    far = far_leader(fleet, proxy)
    near = fleet.worker("near").says(" ready.")
    fleet.takes_part(near)
    first = fleet.history()[-1]
    held = int(fleet.record()["expires_at"])

    proxy.stall()
    far.says(f"deposed, term {first.term}")
    assert fleet.leader(other_than=far) is near
    assert fleet.app.tasks["fleet.lead"].delay("in between").get(timeout=30)["node"] == near.node
    assert fleet.history()[-1].at // 1000 >= held

    proxy.restore()
    far.says("Redis answers again")
    assert far.alive
    seen = fleet.send("plain", queue="far").get(timeout=30)
    assert (seen["node"], seen["leads"]) == (far.node, False)
    near.terminate()
    assert fleet.leader() is far
    assert fleet.app.tasks["fleet.lead"].delay("back").get(timeout=30)["node"] == far.node
    fleet.assert_beliefs_never_overlapped()


def test_a_leader_whose_connections_fall_silent_for_ever_leads_on_over_a_new_one(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet()
    leader = far_leader(fleet, proxy)
    term = fleet.history()[-1].term
    proxy.forget()
    assert fleet.renewed(2)["holder"] == leader.node
    assert fleet.history()[-1].term == term


def test_a_worker_that_finds_no_redis_at_its_start_takes_part_when_there_is_one(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet()
    proxy.refuse()
    worker = fleet.worker("early", broker=proxy.url)
    worker.says("Cannot connect to redis://")
    assert fleet.record() == {}
    proxy.restore()
    assert fleet.leader() is worker
    assert fleet.app.tasks["fleet.lead"].delay().get(timeout=30)["node"] == worker.node
    assert worker.log.count("celery_leader") == 0
    assert worker.log.count("trying on") == 0


def test_a_worker_says_once_that_the_redis_of_its_elections_is_away_and_elects_when_it_is_there(
    new_fleet: NewFleet, proxy: Proxy
) -> None:
    fleet = new_fleet()
    proxy.refuse()
    worker = fleet.worker("early", conf={"leader_url": proxy.url}).says(" ready.")
    worker.says("trying on: the Redis in leader_url cannot be reached")
    # It does its other work meanwhile, and never believes that it leads.
    for _ in range(20):
        assert fleet.send("plain").get(timeout=30)["leads"] is False
    proxy.restore()
    worker.says("consuming from celery.leader")
    assert fleet.leader() is worker
    assert worker.log.count("trying on") == 1
    assert worker.log.count("Redis answers again") == 1
    assert "Traceback" not in worker.log


def test_a_leader_goes_on_when_redis_comes_back_empty(
    own_redis: RedisServer, new_fleet: NewFleet
) -> None:
    # Long enough for a busy machine to be connected again in.
    fleet = new_fleet(own_redis.url, probe=True, conf={"leader_lease_duration": 10.0})
    fleet.workers("w1", "w2")
    leader = fleet.leader()
    (follower,) = fleet.followers()
    follower.says(f"worker: {leader.node} leads, term")  # so it knows that there was a record
    before = fleet.history()[-1]
    own_redis.restart()
    # One that knew the record must wait; the leader writes it again with a higher term.
    wait_until(fleet.record, what="a record in the empty Redis")
    assert fleet.leader() is leader
    after = fleet.history()[-1]
    assert after.term > before.term
    assert len(fleet.history()) == 1
    for result in [fleet.send("lead", "afterwards") for _ in range(6)]:
        assert result.get(timeout=30)["node"] == leader.node
    assert fleet.renewed(1)["holder"] == leader.node
    fleet.assert_beliefs_never_overlapped()


def test_a_leader_goes_on_with_its_term_when_redis_comes_back_with_its_data(
    new_fleet: NewFleet, redis_binary_or_skip: str
) -> None:
    with RedisServer(("--appendonly", "yes", "--appendfsync", "always")) as server:
        fleet = new_fleet(server.url)
        leader = fleet.worker("w1").says(" ready.")
        assert fleet.leader() is leader
        term = fleet.history()[-1].term
        server.restart()
        assert fleet.renewed(2)["term"] == str(term)
        assert fleet.app.tasks["fleet.lead"].delay().get(timeout=30)["term"] == term


def test_after_an_outage_longer_than_the_lease_there_is_one_leader_again(
    own_redis: RedisServer, new_fleet: NewFleet
) -> None:
    fleet = new_fleet(own_redis.url, probe=True)
    workers = fleet.workers("w1", "w2")
    leader = fleet.leader()
    before = fleet.history()[-1].term
    sent = fleet.send("hold", "through the outage")
    fleet.saw("started", "through the outage")
    own_redis.pause()
    leader.says(f"deposed, term {before}")
    own_redis.resume()
    fleet.leader()
    fleet.open("through the outage")
    sent.get(timeout=30)
    assert fleet.send("lead", "afterwards").get(timeout=30)["term"] > before
    assert all(worker.alive for worker in workers)
    fleet.renewed(1)
    fleet.assert_beliefs_never_overlapped()


def test_a_wrong_password_leaves_the_worker_at_work_and_names_the_setting(
    new_fleet: NewFleet, redis_binary_or_skip: str
) -> None:
    with RedisServer(("--requirepass", "secret"), password="secret") as guarded:
        wrong = guarded.url.replace("secret", "guess")
        fleet = new_fleet()
        worker = fleet.worker("w1", conf={"leader_url": wrong}).says(" ready.")
        worker.says("Redis refused the user name or password in leader_url")
        seen = fleet.send("plain").get(timeout=30)
        assert (seen["node"], seen["leads"]) == (worker.node, False)
        assert "guess" not in worker.log
        assert "elected" not in worker.log
        assert "Traceback" not in worker.log


def test_a_read_only_replica_leaves_the_worker_at_work_and_names_the_setting(
    new_fleet: NewFleet, redis_server: RedisServer
) -> None:
    with RedisServer(("--replicaof", "127.0.0.1", str(redis_server.port))) as replica:
        fleet = new_fleet()
        worker = fleet.worker("w1", conf={"leader_url": replica.url}).says(" ready.")
        worker.says("leader_url names a read-only replica")
        seen = fleet.send("plain").get(timeout=30)
        assert (seen["node"], seen["leads"]) == (worker.node, False)
        assert "elected" not in worker.log
        assert "Traceback" not in worker.log
        # The mistake is mended where it was made: the replica is promoted.
        with replica.client() as client:
            client.replicaof("NO", "ONE")
        worker.says("elected")
