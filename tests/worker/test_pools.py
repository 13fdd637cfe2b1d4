"""Leader-only tasks, and what their bodies are told, in every pool Celery comes with."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from celery import VERSION

from celery_leader.runtime.app_runtime import runtime_of
from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.services import must_have
from tests.support.waiting import wait_until

# One task at a time, so that others can wait behind it.
POOLS = {
    "prefork": ("-P", "prefork", "-c", "1"),
    "spawn": ("-P", "prefork", "-c", "1", "--pool-start-method=spawn"),
    "threads": ("-P", "threads", "-c", "1"),
    "solo": ("-P", "solo"),
    "gevent": ("-P", "gevent", "-c", "1"),
    "eventlet": ("-P", "eventlet", "-c", "1"),
}
GREEN = ("gevent", "eventlet")
CHANGING = {
    "a process per task": ("--max-tasks-per-child=1",),
    "autoscaled": ("--autoscale=3,1",),
}
START = {"fork": (), "spawn": ("--pool-start-method=spawn",)}


def where_it_exists(choices: Iterable[str]) -> list[Any]:
    """The choices; to start pool processes afresh can be asked for from Celery 5.7 on."""
    too_old = pytest.mark.skipif(VERSION < (5, 7), reason="--pool-start-method is of Celery 5.7")
    return [pytest.param(each, marks=[too_old] if each == "spawn" else []) for each in choices]


class Pair:
    """Two workers of one pool, which the tests of that pool share; who leads may change."""

    def __init__(self, fleet: Fleet, pool: str) -> None:
        self.fleet = fleet
        self.pool = pool
        self._running = {name: self._start(name) for name in ("w1", "w2")}

    def _start(self, name: str) -> Process:
        return self.fleet.worker(name, *POOLS[self.pool])

    def roles(self) -> tuple[Process, Process]:
        """Who leads and who follows, both ready; one that a test has ended is started again."""
        for name, process in self._running.items():
            if not process.alive:
                self._running[name] = self._start(name)
        for process in self._running.values():
            process.says(" ready.")
            self.fleet.takes_part(process)
        leader = self.fleet.leader()
        (follower,) = (each for each in self._running.values() if each is not leader)
        return leader, follower

    def term(self, election: str = "worker") -> int:
        """The term that Redis has on record."""
        return int(self.fleet.record(election)["term"])


@contextlib.contextmanager
def kept_out(fleet: Fleet, process: Process) -> Iterator[None]:
    """While open, ``process`` leads nothing."""
    runtime = runtime_of(fleet.app)
    runtime.orders.hold(process.node, ("worker", "reports"))
    try:
        yield
    finally:
        runtime.orders.free(process.node, ("worker", "reports"))


def freeze_for_a_lease(fleet: Fleet, process: Process) -> None:
    """Stop ``process`` until its leases are over."""
    process.freeze()
    wait_until(
        lambda: all(
            int(fleet.record(name)["expires_at"]) < 1000 * fleet.moment()
            for name in ("worker", "reports")
        ),
        what="the leases to run out",
    )
    process.thaw()


@pytest.fixture(scope="module", params=where_it_exists(POOLS))
def pair(
    request: pytest.FixtureRequest,
    redis_binary_or_skip: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """Each pool in turn, over a Redis of its own."""
    must_have(
        request.param not in GREEN or find_spec(request.param), f"{request.param} is not installed"
    )
    directory = tmp_path_factory.mktemp(request.param)
    with RedisServer() as server, Fleet(directory, server.url) as fleet:
        yield Pair(fleet, request.param)


def test_a_body_agrees_with_redis_on_who_leads_and_asking_costs_no_command(pair: Pair) -> None:
    fleet = pair.fleet
    leader, follower = pair.roles()
    term = pair.term()
    seen = fleet.send("lead").get(timeout=30)
    assert (seen["node"], seen["leads"]) == (leader.node, True)
    assert (seen["term"], seen["term_after"]) == (term, term)
    asked = fleet.send("lead_ask_often", 20_000).get(timeout=30)
    assert asked["answers"] == [[True, term]]
    assert asked["commands"] < 1_000
    in_main = pair.pool not in ("prefork", "spawn")
    assert (seen["pid"] == leader.pid) == in_main
    if not in_main:
        command = Path(f"/proc/{seen['pid']}/cmdline").read_bytes()
        assert (b"billiard.spawn" in command) == (pair.pool == "spawn")
    asked = fleet.send("ask_often", 20_000, queue=follower.name).get(timeout=30)
    assert asked["answers"] == [[False, None]]
    assert asked["commands"] < 1_000


def test_every_body_knows_the_same_elections(pair: Pair) -> None:
    fleet = pair.fleet
    pair.roles()
    fleet.leader("reports")
    reporter = fleet.record("reports")
    for name in ("w1", "w2"):
        told = fleet.send("ask", ["reports", "beat", "nobody"], queue=name).get(timeout=30)
        leads = reporter["holder"] == f"{name}@fleet"
        assert told["reports"] == (int(reporter["term"]) if leads else None)
        assert told["beat"] is None
        assert told["nobody"].startswith("LeaderError: there is no election 'nobody' here; known ")


def test_what_a_body_sends_goes_straight_to_the_leader(pair: Pair) -> None:
    leader, follower = pair.roles()
    pair.fleet.send("send", "lead", "routed", queue=follower.name).get(timeout=30)
    (ran,) = pair.fleet.saw("ran", "routed")
    assert (ran["node"], ran["hops"]) == (leader.node, 0)
    assert ran["delivery"]["routing_key"] == "celery.leader"


def test_what_a_follower_receives_runs_on_the_leader_under_its_own_id(pair: Pair) -> None:
    leader, follower = pair.roles()
    result = pair.fleet.send("lead", "forwarded", queue=follower.name)
    seen = result.get(timeout=30)
    assert (seen["node"], seen["leads"], seen["term"]) == (leader.node, True, pair.term())
    assert (seen["id"], seen["hops"]) == (result.id, 1)


def test_nothing_starts_with_the_old_term_on_a_leader_that_was_frozen(pair: Pair) -> None:
    fleet = pair.fleet
    leader, other = pair.roles()
    old = pair.term()
    fleet.send("hold", "frozen", queue=leader.name)
    fleet.saw("started", "frozen")
    # Received by the leader as far as its pool receives while a body runs.
    waiting = [fleet.send("lead", "behind", queue=leader.name) for _ in range(3)]
    leader.freeze()
    assert fleet.leader(other_than=leader) is other
    new = pair.term()
    assert new > old
    fleet.open("frozen")
    leader.thaw()
    (finished,) = fleet.saw("finished", "frozen")
    assert (finished["node"], finished["leads"], finished["term"]) == (leader.node, False, None)
    for result in waiting:
        seen = result.get(timeout=30)
        assert (seen["node"], seen["term"]) == (other.node, new)
    assert len(fleet.records("ran", "behind")) == len(waiting)


def test_a_body_does_not_go_on_with_a_term_that_its_frozen_worker_won_afterwards(
    pair: Pair,
) -> None:
    fleet = pair.fleet
    leader, other = pair.roles()
    with kept_out(fleet, other):
        wait_until(lambda: fleet.leader("reports") is leader, what="the lead of reports")
        old, reports = pair.term(), pair.term("reports")
        fleet.send("hold_and_ask", "thawed")
        fleet.saw("started", "thawed")
        freeze_for_a_lease(fleet, leader)
        wait_until(lambda: pair.term() > old and pair.term("reports") > reports, what="new terms")
        for election in ("worker", "reports"):
            leader.says(f"{election}: elected, term {pair.term(election)}")
        fleet.open("thawed")
        (asked,) = fleet.saw("asked", "thawed")
        assert asked["reports"] == pair.term("reports")  # of which this is no body
        for where, (leads, term, checked) in asked["told"].items():
            assert (leads, term) == (False, None), where
            assert f"with term {old}, which this body began with" in checked, where
        seen = fleet.send("lead").get(timeout=30)
        assert (seen["node"], seen["leads"], seen["term"]) == (leader.node, True, pair.term())


def test_the_lease_outlasts_the_last_body_of_a_warm_shutdown_and_is_handed_over(
    pair: Pair,
) -> None:
    fleet = pair.fleet
    leader, other = pair.roles()
    hold = fleet.send("hold", "last", queue=leader.name)
    fleet.saw("started", "last")
    leader.tell(signal.SIGTERM)
    leader.says("Warm shutdown")
    fleet.renewed(1)
    fleet.open("last")
    assert hold.get(timeout=30)["node"] == leader.node
    leader.wait()
    assert fleet.leader() is other
    resigned, elected = fleet.history()[-2:]
    (finished,) = fleet.records("finished", "last")
    assert (resigned.kind, resigned.node) == ("resigned", leader.node)
    assert finished["at"] <= resigned.at + 1000
    seen = fleet.send("lead").get(timeout=30)
    assert (seen["node"], seen["leads"], seen["term"]) == (other.node, True, elected.term)


@pytest.mark.parametrize("pair", GREEN, indirect=True)
def test_a_body_that_never_yields_stops_leading_in_time_and_the_lease_is_taken_again(
    pair: Pair,
) -> None:
    pair.roles()
    old = pair.term()
    starved = pair.fleet.send("hog").get(timeout=30)
    assert (starved["leads"], starved["term"]) == (False, None)
    pair.roles()
    seen = pair.fleet.send("lead").get(timeout=30)
    assert (seen["leads"], seen["term"]) == (True, pair.term())
    assert seen["term"] > old


@pytest.mark.parametrize("start", where_it_exists(START))
@pytest.mark.parametrize("changing", CHANGING)
def test_a_pool_process_that_comes_later_knows_the_same(
    fleet: Fleet, changing: str, start: str
) -> None:
    leader = fleet.worker("w1", *START[start], *CHANGING[changing]).says(" ready.")
    assert fleet.leader() is leader
    term = fleet.history()[-1].term
    # Together they need a process each; one after the other they are given one each.
    names = ["first", "second", "third"] if changing == "autoscaled" else ["first", "second"]
    held = [fleet.send("hold", name) for name in names]
    if changing == "autoscaled":
        for name in names:
            fleet.saw("started", name)
    for name in names:
        fleet.open(name)
    seen = [result.get(timeout=30) for result in held]
    assert len({each["pid"] for each in seen}) == len(names)
    assert {(each["leads"], each["term"]) for each in seen} == {(True, term)}


@pytest.mark.parametrize("start", where_it_exists(START))
def test_a_restarted_pool_knows_the_same(new_fleet: NewFleet, start: str) -> None:
    fleet = new_fleet(conf={"worker_pool_restarts": True})
    leader = fleet.worker("w1", *START[start]).says(" ready.")
    assert fleet.leader() is leader
    term = fleet.history()[-1].term
    before = fleet.send("lead").get(timeout=30)
    restarted = fleet.stranger.control.pool_restart(reply=True, limit=1, timeout=30)
    assert restarted == [{leader.node: {"ok": "reload started"}}]
    after = fleet.send("lead").get(timeout=30)
    assert after["pid"] != before["pid"]
    assert (after["leads"], after["term"]) == (True, term)
    assert fleet.history()[-1].term == term


@pytest.mark.parametrize("how", ["map", "starmap", "chunks"])
def test_a_map_is_one_body_with_one_term(fleet: Fleet, how: str) -> None:
    leader = fleet.worker("w1").says(" ready.").says("consuming from celery.leader")
    old = int(fleet.record()["term"])
    task = fleet.app.tasks["fleet.hold_and_ask"]
    parts = {
        "map": lambda: task.map(["item"]),
        "starmap": lambda: task.starmap([("item",)]),
        "chunks": lambda: task.chunks([("item",)], 1).group(),
    }
    parts[how]().apply_async()
    fleet.saw("started", "item")
    freeze_for_a_lease(fleet, leader)
    wait_until(lambda: int(fleet.record()["term"]) > old, what="a new term")
    leader.says(f"worker: elected, term {fleet.record()['term']}")
    fleet.open("item")
    (asked,) = fleet.saw("asked", "item")
    assert {(leads, term) for leads, term, _ in asked["told"].values()} == {(False, None)}


def test_solo_keeps_its_lease_while_a_body_blocks_the_worker(fleet: Fleet) -> None:
    leader = fleet.worker("w1", "-P", "solo").says(" ready.")
    assert fleet.leader() is leader
    other = fleet.worker("w2", "-P", "solo").says(" ready.")
    fleet.takes_part(other)
    hold = fleet.send("hold", "blocks", queue="w1")
    fleet.saw("started", "blocks")
    assert fleet.outlives_its_lease()["holder"] == leader.node
    fleet.open("blocks")
    seen = hold.get(timeout=30)
    assert (seen["node"], seen["leads"]) == (leader.node, True)
    assert len(fleet.history()) == 1


def test_a_killed_pool_process_is_replaced_by_one_that_knows(fleet: Fleet) -> None:
    leader = fleet.worker("w1").says(" ready.")
    assert fleet.leader() is leader
    fleet.send("hold", "killed")
    (started,) = fleet.saw("started", "killed")
    leader.kill_child(started["pid"])
    seen = fleet.send("lead").get(timeout=30)
    assert seen["pid"] != started["pid"]
    assert (seen["leads"], seen["term"]) == (True, fleet.history()[-1].term)
    assert len(fleet.history()) == 1


def test_an_embedded_beat_and_its_worker_elect_apart(new_fleet: NewFleet) -> None:
    schedule = {"tick": {"task": "lead", "every": 0.3, "args": ["tick"]}}
    fleet = new_fleet(schedule=schedule)
    arguments = ("-B", "--scheduler", "leader")
    first = fleet.worker("w1", *arguments).says(" ready.")
    assert fleet.leader() is first
    second = fleet.worker("w2", *arguments).says(" ready.")
    fleet.takes_part(second)
    wait_until(lambda: len(fleet.redis.zrange(fleet.key("candidates", "beat"), 0, -1)) == 2)
    ran = fleet.saw("ran", "tick", count=4)
    assert {seen["node"] for seen in ran} == {first.node}
    ticks = [seen["headers"]["leader_tick"] for seen in ran]
    assert len(set(ticks)) == len(ticks)
    first.terminate()
    assert fleet.leader() is second
    fleet.saw("ran", "tick", count=len(fleet.records("ran", "tick")) + 3)
    ticks = [seen["headers"]["leader_tick"] for seen in fleet.records("ran", "tick")]
    assert len(set(ticks)) == len(ticks)


def test_an_embedded_beat_ends_with_a_worker_that_is_killed(new_fleet: NewFleet) -> None:
    fleet = new_fleet(schedule={"tick": {"task": "plain", "every": 0.3, "args": ["tick"]}})
    first = fleet.worker("w1", "-B", "--scheduler", "leader").says(" ready.")
    fleet.saw("ran", "tick")
    holder = wait_until(lambda: fleet.record("beat").get("holder"), what="a leading beat")
    second = fleet.worker("w2", "-B", "--scheduler", "leader").says(" ready.")
    wait_until(lambda: len(fleet.redis.zrange(fleet.key("candidates", "beat"), 0, -1)) == 2)
    first.tell(signal.SIGKILL)  # the main process alone
    wait_until(
        lambda: fleet.record("beat").get("holder") not in (None, holder), what="another beat"
    )
    first.says("the worker this beat belongs to is gone")
    assert second.alive
    assert fleet.leader() is second


def test_a_body_that_forks_in_a_pool_of_greenlets_leaves_the_election_to_its_parent(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet()
    worker = fleet.worker("w1", *POOLS["gevent"]).says(" ready.")
    assert fleet.leader() is worker
    seen = fleet.app.tasks["fleet.forks"].delay("forks").get(timeout=30)
    assert fleet.renewed(1)["term"] == str(seen["term"])
    # Celery's own greenlets may leave one: the child has their sockets, too.
    assert not re.search(r'File ".*/celery_leader/\w+\.py"', worker.log)
    assert "a turn failed" not in worker.log
