"""A worker's connection to its broker is cut before and after every command it sends there.

Not judged is what is cut between Redis's answer to ``BRPOP`` and that to the worker's own note
of what it was given: there Celery loses any message, or finds it after the visibility timeout.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_leader import LeaderElection
from tests.support.counting_proxy import Command, CountingProxy, Cut
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

_RESETS = (Cut.BEFORE, Cut.AFTER)
_MANY = 300  # messages; so many commands would be one for each


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[CountingProxy]:
    """Between one worker and its broker; the leases and results have connections of their own."""
    with CountingProxy(redis_server.port) as proxy:
        yield proxy


class OfMessages:
    """Picks out the commands that hand over, note or acknowledge a message of a task."""

    def __init__(self) -> None:
        self._noting: set[int] = set()

    def __call__(self, command: Command) -> bool:
        key = command.args[0] if command.args else b""
        if command.name == "EXEC" and command.connection in self._noting:
            self._noting.discard(command.connection)
            return True
        if key in (b"unacked", b"unacked_index") and command.name != "WATCH":
            self._noting.add(command.connection)
            return True
        return command.name == "LPUSH" and key == b"celery.leader"


def far_worker(fleet: Fleet, proxy: CountingProxy, redis_url: str, *arguments: str) -> Process:
    """A worker behind the proxy.

    An acknowledgement that was cut keeps its place in Celery's prefetch, so that is large.
    """
    conf = {"leader_url": redis_url, "worker_prefetch_multiplier": 100}
    return fleet.worker("far", *arguments, broker=proxy.url, backend=redis_url, conf=conf).says(
        " ready."
    )


def nothing_is_held(fleet: Fleet) -> None:
    """Wait until all that was fetched is acknowledged."""
    wait_until(lambda: fleet.redis.hlen("unacked") == 0, what="acknowledgements")


#: With these the worker notes what it was given by Redis; until then nobody else knows of it.
_NOTED = ["ZADD", "HSET", "EXEC"]


def cut_at_every_command(fleet: Fleet, proxy: CountingProxy, send: Callable[[str], Any]) -> None:
    """Have each command be cut once that comes after a task of ``send`` is noted; it must run."""

    def undisturbed() -> None:
        send("undisturbed").get(timeout=30)
        nothing_is_held(fleet)

    commands = proxy.during(undisturbed, of=OfMessages())
    noted = len(_NOTED)
    assert [command.name for command in commands[:noted]] == _NOTED, commands
    assert [command.name for command in commands[-3:]] == ["ZREM", "HDEL", "EXEC"], commands
    for nth in range(noted + 1, len(commands) + 1):
        for cut in _RESETS:
            label = f"{cut.value}: {commands[nth - 1]}, command {nth}"
            proxy.cut(cut, nth, of=OfMessages())
            result = send(label)
            wait_until(lambda: proxy.cuts == 1, what=f"the cut {label}")
            assert result.get(timeout=60), label


@pytest.mark.parametrize("name", ["lead", "lead_late"])
def test_whatever_is_cut_while_the_leader_fetches_and_acknowledges_the_task_runs(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str, name: str
) -> None:
    fleet = new_fleet(conf=LASTING)
    far = far_worker(fleet, proxy, redis_url).says("consuming from celery.leader")
    assert fleet.leader() is far
    send = fleet.app.tasks[f"fleet.{name}"].delay
    cut_at_every_command(fleet, proxy, send)


@pytest.mark.parametrize("name", ["lead", "skippable"])
def test_whatever_is_cut_while_a_follower_hands_over_the_task_runs_or_is_skipped(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str, name: str
) -> None:
    fleet = new_fleet(conf=LASTING)
    near = fleet.worker("near").says(" ready.")
    assert fleet.leader() is near
    far_worker(fleet, proxy, redis_url, "--no-candidate", "-Q", "far")

    def send(label: str) -> Any:
        result = fleet.send(name, label, queue="far")
        if name == "skippable":
            result.get = lambda timeout: wait_until(
                lambda: result.state == "REVOKED", timeout, what="the end of what is skipped"
            )
        return result

    cut_at_every_command(fleet, proxy, send)


def test_what_a_paused_leader_had_fetched_runs_whatever_is_cut_when_it_goes_on(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str
) -> None:
    fleet = new_fleet()
    far = far_worker(fleet, proxy, redis_url).says("consuming from celery.leader")

    def hand_over(round_: str, cut: Cut | None = None, nth: int = 0) -> Any:
        """Have the paused leader's fetched task handed over; returns its result."""
        assert fleet.leader() is far
        fleet.app.tasks["fleet.hold"].delay(round_)
        fleet.saw("started", round_)
        held = fleet.app.tasks["fleet.lead"].delay(round_)
        far.says(f"[{held.id}] received")
        far.freeze()
        with LeaderElection(fleet.app, "worker", node="other@here") as election:
            assert election.wait_until_leader(timeout=30)
            deposed = far.log.count("deposed, term")
            far.thaw()
            wait_until(lambda: far.log.count("deposed, term") > deposed, what="a deposition")
            if cut is not None:
                proxy.cut(cut, nth, of=OfMessages())
            fleet.open(round_)
            fleet.saw("finished", round_)
            if cut is not None:
                wait_until(lambda: proxy.cuts == 1, what="the cut")
            else:
                wait_until(lambda: fleet.messages("celery.leader"), what="the hand-over")
        return held

    hand_over("undisturbed").get(timeout=30)
    # One LPUSH hands it over, and ZREM, HDEL and EXEC acknowledge it.
    for nth in range(1, 5):
        for cut in _RESETS:
            label = f"{cut.value}, command {nth}"
            assert hand_over(label, cut, nth).get(timeout=60)["node"] == far.node, label


def stopped_with_many(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str
) -> tuple[Fleet, Process, list[str]]:
    """A leader that holds many messages for their time, and their ids in order."""
    fleet = new_fleet(conf=LASTING)
    far = far_worker(fleet, proxy, redis_url).says("consuming from celery.leader")
    lead = fleet.app.tasks["fleet.lead"]
    sent = [lead.apply_async((str(n),), countdown=900).id for n in range(_MANY)]
    wait_until(lambda: fleet.redis.hlen("unacked") == _MANY, what="all to be fetched")
    return fleet, far, sent


def gives_back(command: Command) -> bool:
    """Whether it may be one of those that give messages back, and not one that waits or tells."""
    return command.name in ("EVAL", "EVALSHA", "EXEC", "HDEL", "LPUSH", "RPUSH", "ZREM")


def ids_of(fleet: Fleet) -> list[str]:
    """The ids of what waits in the leader queue, in order."""
    return [message["id"] for message in fleet.messages("celery.leader")]


def test_a_leader_that_stops_gives_thousands_back_in_a_few_steps_and_in_order(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str
) -> None:
    fleet, far, sent = stopped_with_many(new_fleet, proxy, redis_url)
    proxy.forget_commands(gives_back)
    assert far.terminate() == 0
    assert 1 <= len(proxy.commands) < _MANY / 2, "a command for each message"
    assert fleet.record()["state"] == fleet.record("reports")["state"] == "released"
    assert ids_of(fleet) == sent
    assert fleet.redis.hlen("unacked") == fleet.redis.zcard("unacked_index") == 0
    assert all(message["redelivered"] for message in fleet.messages("celery.leader"))


def test_a_leader_that_steps_down_gives_thousands_back_in_a_few_steps(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str
) -> None:
    fleet, _, sent = stopped_with_many(new_fleet, proxy, redis_url)
    proxy.forget_commands(gives_back)
    with LeaderElection(fleet.app, "worker", node="other@here") as election:
        candidates = fleet.key("candidates", "worker")
        wait_until(
            lambda: fleet.leases.zscore(candidates, "other@here"), what="the other candidate"
        )
        done = fleet.run("leader", "transfer", "other@here", "--election", "worker")
        assert done.returncode == 0, done.stderr
        assert election.is_leader()
        wait_until(lambda: len(ids_of(fleet)) == _MANY, what="all to be given back")
        assert 1 <= len(proxy.commands) < _MANY / 2, "a command for each message"
        # One may be on its way to the leader at that moment; that one goes to the end.
        assert sorted(ids_of(fleet)) == sorted(sent)


@pytest.mark.parametrize("cut", _RESETS)
def test_a_leader_that_dies_while_it_gives_back_loses_nothing_and_doubles_nothing(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str, cut: Cut
) -> None:
    fleet, far, sent = stopped_with_many(new_fleet, proxy, redis_url)
    proxy.cut(cut, of=lambda command: command.name == "EVAL")
    far.tell(signal.SIGTERM)
    wait_until(lambda: proxy.cuts == 1, what="the cut")
    far.kill()
    queued = ids_of(fleet)
    assert len(set(queued)) == len(queued)
    assert len(queued) + fleet.redis.hlen("unacked") == _MANY
    assert set(queued) <= set(sent)


def test_what_cannot_be_given_back_stays_unacknowledged(
    new_fleet: NewFleet, proxy: CountingProxy, redis_url: str
) -> None:
    fleet, far, _ = stopped_with_many(new_fleet, proxy, redis_url)
    fleet.redis.set("celery.leader", "no list")
    far.tell(signal.SIGTERM)
    far.says("cannot be given back yet")
    assert fleet.redis.hlen("unacked") == _MANY
    far.kill()
