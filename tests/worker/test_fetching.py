"""A leader's work fails over with the lead: what it fetched is never lost, and not held up.

All with kombu's default visibility timeout, an hour, unless a test says so.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis

from celery_leader import LeaderElection
from tests.support.counting_proxy import Command, CountingProxy, Cut
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

POOLS = ["prefork", "solo", "threads", "gevent", "eventlet"]


def leading_worker(fleet: Fleet, *arguments: str, **config: Any) -> Process:
    """The first worker, which consumes the leader queue."""
    worker = fleet.worker("w1", *arguments, **config).says(" ready.")
    assert fleet.leader() is worker
    return worker.says("consuming from celery.leader")


def in_flight(fleet: Fleet) -> int:
    return int(fleet.redis.hlen(fleet.key("in-flight", "worker")))


@pytest.mark.parametrize("pool", POOLS)
def test_what_a_killed_leader_had_in_hand_runs_on_the_next_one(
    new_fleet: NewFleet, pool: str
) -> None:
    fleet = new_fleet()
    leader = leading_worker(fleet, "-P", pool, "-c", "1")
    follower = fleet.worker("w2", "-P", pool, "-c", "1").says(" ready.")
    fleet.takes_part(follower)
    running = fleet.app.tasks["fleet.hold_late"].delay("running")
    fleet.saw("started", "running")
    fetched = [fleet.app.tasks["fleet.lead_late"].delay("fetched") for _ in range(3)]
    # A body of a solo worker holds up its event loop; a full pool of greenlets does so, too.
    held = {"solo": 1, "gevent": 2, "eventlet": 2}.get(pool, 4)
    wait_until(lambda: in_flight(fleet) == held, what="messages to be fetched")
    leader.kill()
    sent = [fleet.app.tasks["fleet.lead"].delay("after the kill") for _ in range(5)]
    fleet.open("running")
    seen = [result.get(timeout=30) for result in (running, *fetched, *sent)]
    assert {each["node"] for each in seen} == {follower.node}
    assert len(fleet.records("started", "running")) == 2
    assert len(fleet.records("ran", "fetched")) == 3
    follower.says("that a lost worker had fetched are in the queue again")
    wait_until(lambda: in_flight(fleet) == 0, what="acknowledgements")
    assert fleet.redis.hlen("unacked") == 0


def test_messages_sent_at_the_moment_of_a_kill_are_not_lost(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    leader = leading_worker(fleet)
    fleet.worker("w2").says(" ready.")
    sent = []
    for number in range(30):
        # Acknowledged late: with early acknowledgement a body that runs at the kill is gone.
        sent.append(fleet.app.tasks["fleet.lead_late"].delay("sent"))
        if number == 15:
            os.kill(leader.pid, signal.SIGKILL)
    leader.kill()
    for result in sent:
        result.get(timeout=30)
    assert {seen["id"] for seen in fleet.records("ran", "sent")} == {each.id for each in sent}


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_no_visibility_timeout_touches_what_the_leader_holds(
    new_fleet: NewFleet, pool: str
) -> None:
    """Neither a long body nor a message that waits for its time comes a second time."""
    quickly = {
        "visibility_timeout": 1,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    fleet = new_fleet(conf={"broker_transport_options": quickly})
    leader = leading_worker(fleet, "-P", pool, "-c", "2")
    other = fleet.worker("w2", "-P", pool, "-c", "2").says(" ready.")
    fleet.takes_part(other)
    long = fleet.app.tasks["fleet.hold_late"].delay("long")
    fleet.saw("started", "long")
    eta = datetime.now(timezone.utc) + timedelta(seconds=5)
    later = fleet.app.tasks["fleet.lead_late"].apply_async(("later",), eta=eta)
    leader.says(f"[{later.id}] received")
    assert later.get(timeout=30)["node"] == leader.node
    fleet.outlives_its_lease()
    fleet.open("long")
    long.get(timeout=30)
    assert len(fleet.records("started", "long")) == 1
    assert len(fleet.records("ran", "later")) == 1
    assert fleet.messages("celery.leader") == []


def test_a_frozen_leader_that_goes_on_takes_nothing_from_the_next_one(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    leader = leading_worker(fleet)
    follower = fleet.worker("w2").says(" ready.")
    fleet.takes_part(follower)
    running = fleet.app.tasks["fleet.hold_late"].delay("running")
    fleet.saw("started", "running")
    fetched = fleet.app.tasks["fleet.lead"].delay("fetched")
    leader.says(f"[{fetched.id}] received")
    leader.freeze()
    follower.says("that a lost worker had fetched are in the queue again")
    leader.thaw()
    leader.says("deposed, term")
    # Its body goes on, beside the one that the next leader began because it heard of it no more.
    fleet.saw("started", "running", count=2)
    for _ in range(2):
        fleet.open("running")
    running.get(timeout=30)
    assert fetched.get(timeout=30)["node"] == follower.node
    wait_until(lambda: in_flight(fleet) == 0, what="acknowledgements")
    assert fleet.redis.hlen("unacked") == 0
    assert len(fleet.records("ran", "fetched")) == 1


def test_a_deposed_leader_that_is_heard_of_keeps_what_its_body_runs(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    leader = leading_worker(fleet)
    running = fleet.app.tasks["fleet.hold_late"].delay("running")
    fleet.saw("started", "running")
    fetched = fleet.app.tasks["fleet.lead_late"].delay("fetched")
    leader.says(f"[{fetched.id}] received")
    leader.freeze()
    with LeaderElection(fleet.app, "worker", node="other@here") as election:
        assert election.wait_until_leader(timeout=30)
        leader.thaw()
        leader.says("deposed, term")
        # What waited is in the queue again; what runs is not.
        wait_until(lambda: in_flight(fleet) == 1, what="what waited to be given back")
        next_one = fleet.worker("w2").says(" ready.")
        fleet.takes_part(next_one)
        fleet.run("leader", "hold", leader.node, "--election", "worker")
    assert fleet.leader() is next_one
    assert fetched.get(timeout=30)["node"] == next_one.node
    fleet.outlives_its_lease()
    assert len(fleet.records("started", "running")) == 1
    fleet.open("running")
    assert running.get(timeout=30)["node"] == leader.node
    wait_until(lambda: in_flight(fleet) == 0, what="the acknowledgement")
    assert fleet.messages("celery.leader") == []


# -- connections that are cut ---------------------------------------------------------------


@pytest.fixture
def counted(redis_server: RedisServer) -> Iterator[CountingProxy]:
    """Between one worker and its broker."""
    with CountingProxy(redis_server.port) as proxy:
        yield proxy


def of_messages(command: Command) -> bool:
    """Whether it fetches, settles or gives back a message of the election ``worker``."""
    script = command.name in ("EVAL", "EVALSHA") and any(
        arg.endswith(b":in-flight:worker") for arg in command.args[:8]
    )
    acquires = script and any(arg.endswith(b":facts:worker") for arg in command.args[:12])
    return script and not acquires


@pytest.mark.parametrize("name", ["lead", "lead_late"])
@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER])
def test_whatever_is_cut_of_fetching_and_settling_the_task_runs_and_nothing_is_left(
    new_fleet: NewFleet, counted: CountingProxy, redis_url: str, name: str, cut: Cut
) -> None:
    fleet = new_fleet(conf=LASTING)
    worker = fleet.worker("w1", broker=counted.url, backend=redis_url).says(" ready.")
    assert fleet.leader() is worker
    worker.says("consuming from celery.leader")
    task = fleet.app.tasks[f"fleet.{name}"]
    task.delay("undisturbed").get(timeout=30)
    # A fetch waits for messages already; then it is fetched again, and settled.
    for nth in range(1, 6):
        counted.cut(cut, nth, of=of_messages)
        result = task.delay(f"{nth}")
        wait_until(lambda: counted.cuts == 1, what=f"cut {nth}")
        result.get(timeout=60)
        wait_until(lambda: in_flight(fleet) == 0, what=f"everything to be settled after cut {nth}")
        assert fleet.redis.hlen("unacked") == 0
        assert fleet.messages("celery.leader") == []
    assert worker.alive


def test_an_acknowledgement_that_an_outage_swallowed_is_made_good(
    new_fleet: NewFleet, redis_server: RedisServer, redis_url: str
) -> None:
    with Proxy(redis_server.port) as proxy:
        fleet = new_fleet(conf=LASTING)
        worker = fleet.worker("w1", broker=proxy.url, backend=redis_url, record=redis_url)
        worker.says(" ready.")
        assert fleet.leader() is worker
        worker.says("consuming from celery.leader")
        fleet.app.tasks["fleet.hold_late"].delay("body")
        fleet.saw("started", "body")
        proxy.refuse()
        proxy.reset()
        worker.says("Connection to broker lost")
        fleet.open("body")
        fleet.saw("finished", "body")
        proxy.restore()
        wait_until(lambda: in_flight(fleet) == 0, what="the acknowledgement")
        assert fleet.app.tasks["fleet.lead"].delay("next").get(timeout=30)["node"] == worker.node
        assert len(fleet.records("started", "body")) == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_leader_that_has_connected_again_steps_down_when_its_bodies_have_ended(
    new_fleet: NewFleet, redis_server: RedisServer, redis_url: str, pool: str
) -> None:
    with Proxy(redis_server.port) as proxy:
        fleet = new_fleet(conf=LASTING)
        over = {"broker": proxy.url, "backend": redis_url, "record": redis_url}
        worker = fleet.worker("w1", "-P", pool, **over).says(" ready.")
        assert fleet.leader() is worker
        worker.says("consuming from celery.leader")
        fleet.app.tasks["fleet.hold"].delay("body")
        fleet.saw("started", "body")
        proxy.reset()
        wait_until(lambda: worker.log.count("worker: consuming") == 2, what="a new connection")
        fleet.open("body")
        fleet.saw("finished", "body")
        with LeaderElection(fleet.app, "worker", node="other@here") as election:
            fleet.run("leader", "transfer", "other@here", "--election", "worker")
            assert election.wait_until_leader(timeout=10)
        wait_until(lambda: in_flight(fleet) == 0, what="everything to be settled")


# -- what a leader queue may hold, and what Redis may refuse --------------------------------


def no_messages() -> dict[str, bytes]:
    """What somebody may write into a leader queue, and no worker can read."""
    sound: dict[str, Any] = {
        "body": "e30=",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "fleet.lead", "id": "1"},
        "properties": {"delivery_tag": "1", "body_encoding": "base64"},
    }

    def but(**changes: Any) -> bytes:
        return json.dumps({**sound, **changes}).encode()

    return {
        "no JSON": b"no JSON",
        "an id, as celery-redis-plus has": b"6f1c0e9b-7a2b-4bb0-8d7f-000000000000",
        "nothing": b"",
        "no UTF-8": b"\xff\xfe\x00",
        "a list": b"[1, 2, 3]",
        "a number": b"17",
        "no object": b"null",
        "nested deeply": b"[" * 5000 + b"]" * 5000,
        "an object nested deeply": but(headers=0)[:-1]
        + b', "x": '
        + b"[" * 3000
        + b"]" * 3000
        + b"}",
        "20 MB without a tag": b'{"body": "' + b"A" * 20_000_000 + b'"}',
        "no tag": but(properties={}),
        "a tag that is a number": but(properties={"delivery_tag": 1}),
        "headers that are none": but(headers=7, properties={"delivery_tag": "2"}),
        "a body that is no text": but(body=7, properties={"delivery_tag": "3"}),
        "a body that is no base64": but(body="!!! ???"),
        "no id": but(headers={"task": "fleet.lead"}),
        "a body of another shape": but(body="W10="),
    }


def test_what_is_no_message_is_set_aside_and_the_others_go_on(new_fleet: NewFleet) -> None:
    patient = {"leader_operation_timeout": 5.0}  # 20 MB take their time
    fleet = new_fleet(conf={**LASTING, **patient})
    leader = leading_worker(fleet)
    aside = fleet.key("unreadable", "worker")
    for number, (kind, text) in enumerate(no_messages().items()):
        fleet.redis.lpush("celery.leader", text)
        good = fleet.app.tasks["fleet.lead"].delay("good")
        assert good.get(timeout=30)["node"] == leader.node, kind
        wait_until(
            lambda n=number: fleet.redis.llen(aside) == n + 1, what=f"{kind} to be set aside"
        )  # type: ignore[misc]
        errors = [line for line in leader.log.splitlines() if "set aside in the list" in line]
        assert len(errors) == number + 1, kind
        assert "ERROR/MainProcess] celery.leader: " in errors[-1]
        assert errors[-1].endswith(aside)
    wait_until(lambda: in_flight(fleet) == 0, what="everything to be settled")
    assert fleet.redis.hlen("unacked") == 0
    with redis.Redis.from_url(fleet.config["broker"]) as client:
        assert set(client.lrange(aside, 0, -1)) == set(no_messages().values())
    assert leader.alive


def test_a_queue_of_another_type_is_named_once_a_second_and_mended(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    fleet.redis.set("celery.leader", "no list")
    leader = fleet.worker("w1").says(" ready.")
    leader.says("celery.leader cannot be fetched from")
    leader.says("delete that key")
    fleet.redis.delete("celery.leader")
    assert fleet.app.tasks["fleet.lead"].delay("good").get(timeout=30)["node"] == leader.node


def test_what_is_fetched_is_received_though_the_wait_for_it_is_refused(
    new_fleet: NewFleet, own_redis: RedisServer
) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-blmove")
    fleet = new_fleet(broker=own_redis.url, conf=LASTING)
    leader = leading_worker(fleet)
    for number in range(3):
        result = fleet.app.tasks["fleet.lead"].delay(str(number))
        assert result.get(timeout=30)["node"] == leader.node
    leader.says("celery.leader cannot be fetched from")
    assert leader.log.count("celery.leader cannot be fetched from") == 1
    wait_until(lambda: in_flight(fleet) == 0, what="everything to be settled")


def test_messages_of_every_priority_arrive(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    leading_worker(fleet)
    for priority in (9, 0, 5, 3, 6):
        result = fleet.app.tasks["fleet.lead"].apply_async(("one",), priority=priority)
        assert result.get(timeout=30)
    assert len(fleet.records("ran", "one")) == 5


def test_a_leader_fetches_as_much_as_its_prefetch_allows_and_counts_plain_tasks(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    leading_worker(fleet)
    fleet.app.tasks["fleet.hold"].delay("gate")
    fleet.saw("started", "gate")
    for _ in range(12):
        fleet.app.tasks["fleet.lead_late"].delay("waits")
        fleet.send("plain", "waits", queue="w1")
    wait_until(lambda: fleet.redis.hlen("unacked") >= 4, what="a full prefetch")
    fleet.renewed(3)
    assert 4 <= fleet.redis.hlen("unacked") <= 5
    fleet.open("gate")
    wait_until(lambda: len(fleet.records("ran", "waits")) == 24, what="all to run")


def test_a_leader_that_is_told_to_stop_consuming_consumes_again(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    leader = leading_worker(fleet)
    control = fleet.app.control
    queues = control.inspect(destination=[leader.node]).active_queues()[leader.node]
    assert "celery.leader" in {queue["name"] for queue in queues}
    assert fleet.app.tasks["fleet.lead"].delay("before").get(timeout=30)
    control.rate_limit("fleet.lead", "20/s", destination=[leader.node], reply=True)
    limited = [fleet.app.tasks["fleet.lead"].delay("limited") for _ in range(8)]
    revoked = fleet.app.tasks["fleet.lead"].apply_async(("revoked",), countdown=3)
    revoked.revoke()
    for result in limited:
        result.get(timeout=30)
    wait_until(lambda: revoked.state == "REVOKED", what="the revoked one")
    wait_until(lambda: in_flight(fleet) == 0, what="everything to be settled")
    assert fleet.records("ran", "revoked") == []


def test_a_warm_shutdown_leaves_nothing_in_flight_and_all_in_order(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    leader = leading_worker(fleet, "-c", "1")
    fleet.app.tasks["fleet.hold_late"].delay("gate")
    fleet.saw("started", "gate")
    sent = [fleet.app.tasks["fleet.lead"].delay("waits").id for _ in range(12)]
    wait_until(lambda: in_flight(fleet) >= 4, what="a full prefetch")
    leader.tell(signal.SIGTERM)
    leader.says("no longer consuming from celery.leader")
    wait_until(lambda: in_flight(fleet) == 1, what="what waits to be given back")
    assert [message["id"] for message in fleet.messages("celery.leader")] == sent
    fleet.open("gate")
    assert leader.wait() == 0
    assert in_flight(fleet) == fleet.redis.hlen("unacked") == 0
    assert len(fleet.records("finished", "gate")) == 1


def test_the_keys_in_redis_say_who_has_which_message(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    leader = leading_worker(fleet)
    result = fleet.app.tasks["fleet.hold_late"].delay("gate")
    fleet.saw("started", "gate")
    ((tag, line),) = fleet.redis.hgetall(fleet.key("in-flight", "worker")).items()
    assert line.endswith(f" {leader.node}")
    raw, exchange, key = json.loads(fleet.redis.hget("unacked", tag))
    assert raw["headers"]["id"] == result.id
    assert (exchange, key) == ("", "celery.leader")
    assert fleet.redis.zcard("unacked_index") == 0
    fleet.open("gate")


@pytest.mark.parametrize("both", [True, False], ids=["leads both", "leads one"])
def test_a_message_of_another_election_goes_to_its_own_queue(
    new_fleet: NewFleet, both: bool
) -> None:
    """Its task named another election when it was sent, or the sender named the queue."""
    fleet = new_fleet(conf=LASTING)
    leader = leading_worker(fleet, "--elections", "worker,reports" if both else "worker")
    if not both:
        fleet.worker("w2", "--elections", "reports").says("consuming from celery.leader.reports")
    sent = fleet.app.tasks["fleet.report"].apply_async(("a",), queue="celery.leader")
    seen = sent.get(timeout=30)
    assert seen["delivery"]["routing_key"] == "celery.leader.reports"
    assert seen["hops"] == 1
    assert (seen["node"] == leader.node) is both
    wait_until(lambda: in_flight(fleet) == 0, what="acknowledgements")
    assert fleet.redis.hlen("unacked") == 0
