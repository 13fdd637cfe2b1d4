"""Workers and beats on RabbitMQ, with their leases in a Redis: claim, publish, confirm."""

from __future__ import annotations

import urllib.parse
from typing import Any

import pytest
from kombu import Connection

from tests.support.fixtures import NewOnRabbit
from tests.support.fleet import Fleet
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import wait_until


class Queued:
    """What waits in the default queue of a fleet, taken out as it is looked at."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.headers: list[dict[str, Any]] = []

    def of(self, task: str) -> list[dict[str, Any]]:
        """The headers of all messages of ``task`` until now, in order."""
        name = self._fleet.config["conf"]["task_default_queue"]
        with Connection(self._fleet.config["broker"]) as connection:
            channel = connection.channel()
            while (message := channel.basic_get(name, no_ack=True)) is not None:
                self.headers.append(message.headers)
        return [headers for headers in self.headers if headers["task"] == f"fleet.{task}"]

    def wait_for(self, count: int, task: str) -> list[dict[str, Any]]:
        """Wait until there were ``count`` messages of ``task``."""

        def enough() -> list[dict[str, Any]] | None:
            found = self.of(task)
            return found if len(found) >= count else None

        return wait_until(enough, what=f"{count} messages of {task}") or []


def declare(fleet: Fleet) -> Queued:
    """Make the queue that a worker would have made, and watch it."""
    with Connection(fleet.config["broker"]) as connection:
        fleet.stranger.amqp.queues[fleet.config["conf"]["task_default_queue"]](
            connection.channel()
        ).declare()
    return Queued(fleet)


def test_leader_only_tasks_run_on_the_leading_worker_and_each_tick_has_one_id(
    new_on_rabbit: NewOnRabbit,
) -> None:
    fleet = new_on_rabbit(
        {
            "lead": {"task": "lead", "every": 0.4, "args": ["lead"]},
            "plain": {"task": "plain", "every": 0.4, "args": ["plain"]},
        }
    )
    default = fleet.config["conf"]["task_default_queue"]
    workers = [fleet.worker(name, "-Q", default) for name in ("w1", "w2")]
    for worker in workers:
        worker.says(" ready.")
    leader = fleet.leader()
    beats = fleet.beats("b1", "b2")
    beat = fleet.leader("beat")
    fleet.saw("ran", "lead", 3)
    assert {each["node"] for each in fleet.records("ran", "lead")} == {leader.node}
    assert {each["headers"]["leader_only"] for each in fleet.records("ran", "lead")} == {"worker"}
    assert leader.terminate() == 0
    successor = fleet.leader(other_than=leader)
    already = len(fleet.records("ran", "lead"))
    fleet.saw("ran", "lead", already + 2)
    assert {each["node"] for each in fleet.records("ran", "lead")[already:]} == {successor.node}
    assert beat.terminate() == 0
    assert fleet.leader("beat") in beats
    fleet.saw("ran", "lead", len(fleet.records("ran", "lead")) + 2)
    for label in ("lead", "plain"):
        runs = [
            (each["headers"]["leader_tick"], each["id"]) for each in fleet.records("ran", label)
        ]
        assert len({tick for tick, _ in runs}) == len({task_id for _, task_id in runs})
        # A beat that is stopped while it waits for RabbitMQ to confirm leaves a claim behind.
        assert len(runs) - len(set(runs)) <= 1
    assert all("Traceback" not in process.log for process in fleet.processes)


@pytest.mark.parametrize(
    ("dies", "copies"), [("DyingAfterScheduler", 2), ("DyingBeforeScheduler", 1)]
)
def test_what_a_killed_beat_had_claimed_is_sent_by_the_next_under_the_same_id(
    new_on_rabbit: NewOnRabbit, dies: str, copies: int
) -> None:
    fleet = new_on_rabbit({"tick": {"task": "plain", "every": 0.4}})
    queued = declare(fleet)
    first = fleet.beats_of(f"tests.support.fleet_app.schedulers:{dies}", "b1")[0]
    second = fleet.beat("b2")
    fleet.takes_part(second, "beat")
    # The first stops itself at its third message, and is killed when another has its lease.
    assert fleet.leader("beat", other_than=first) is second
    first.kill()
    sent = queued.wait_for(6, "plain")
    ids = [headers["id"] for headers in sent]
    claimed = ids[2]
    assert ids.count(claimed) == copies
    assert len(set(ids)) == len(ids) - (copies - 1)
    ticks = {headers["id"]: headers["leader_tick"] for headers in sent}
    assert len(set(ticks.values())) == len(ticks)
    by = [int(h["origin"].removeprefix("gen").split("@")[0]) for h in sent]
    assert by[: 1 + copies] == [first.pid] * (1 + copies)
    assert set(by[1 + copies :]) == {second.pid}
    assert second.alive
    assert "Traceback" not in second.log


def test_a_leader_that_finds_messages_waiting_when_it_is_connected_again_runs_them(
    new_on_rabbit: NewOnRabbit, rabbitmq: RabbitMQ
) -> None:
    fleet = new_on_rabbit({}, leader_lease_duration=300.0, worker_prefetch_multiplier=1)
    queue = fleet.config["conf"]["task_default_queue"]
    worker = fleet.worker("w1", "-Q", queue, talks_while_starting=True)
    worker.says("consuming from")
    held = 20
    for _ in range(held):
        fleet.app.tasks["fleet.hold"].delay("waits")
    rabbitmq.stop()
    rabbitmq.start()
    for _ in range(2 * held):  # what ran before the restart may be delivered again
        fleet.open("waits")
    wait_until(
        lambda: len(fleet.records("finished", "waits")) >= held or not worker.alive,
        what="all to have run",
    )
    assert worker.alive
    assert [line.kind for line in fleet.history()] == ["elected"]


def test_what_falls_due_while_rabbitmq_restarts_is_sent_when_it_is_back(
    new_on_rabbit: NewOnRabbit, rabbitmq: RabbitMQ
) -> None:
    # A lease that outlasts the restart.
    fleet = new_on_rabbit({"tick": {"task": "plain", "every": 0.4}}, leader_lease_duration=300.0)
    queued = declare(fleet)
    beat = fleet.beats("b1")[0]
    before = len(queued.wait_for(2, "plain"))
    rabbitmq.stop()
    beat.says("stays due and is tried again")
    rabbitmq.start()
    beat.says("dispatching again after")
    sent = queued.wait_for(before + 3, "plain")
    # A message whose confirmation was lost may be there twice, but then it is the same one.
    ids = [headers["id"] for headers in sent]
    tick_of = {headers["id"]: headers["leader_tick"] for headers in sent}
    assert len(set(tick_of.values())) == len(tick_of) >= len(ids) - 1
    assert [line.kind for line in fleet.history("beat")] == ["elected"]
    assert beat.alive
    assert "Traceback" not in beat.log


@pytest.mark.parametrize("silent", [False, True], ids=["reset", "mute"])
def test_who_is_cut_off_from_rabbitmq_alone_leads_no_longer_and_comes_back(
    new_on_rabbit: NewOnRabbit, rabbitmq: RabbitMQ, silent: bool
) -> None:
    often = {"task": "lead", "every": 0.4, "args": ["often"], "options": {"ignore_result": True}}
    fleet = new_on_rabbit({"often": often}, leader_lease_duration=3.0)
    queue = fleet.config["conf"]["task_default_queue"]
    port = urllib.parse.urlsplit(rabbitmq.url).port
    assert port is not None
    with Proxy(port) as proxy:
        behind = {"broker": f"amqp://guest:guest@127.0.0.1:{proxy.port}//"}
        far_worker = fleet.worker("far", "-Q", queue, **behind).says("consuming from")
        far_beat = fleet.beat("far beat", **behind)
        assert (fleet.leader(), fleet.leader("beat")) == (far_worker, far_beat)
        near_worker = fleet.worker("near", "-Q", queue).says(" ready.")
        near_beat = fleet.beat("near beat")
        fleet.takes_part(near_worker)
        fleet.takes_part(near_beat, "beat")
        fleet.saw("ran", "often")

        (proxy.stall if silent else proxy.refuse)()
        for far in (far_worker, far_beat):
            far.says("broker lost")
        # The record in Redis still names a leader that has only just stepped down.
        assert fleet.leader(other_than=far_worker) is near_worker
        assert fleet.leader("beat", other_than=far_beat) is near_beat
        ran = fleet.saw("ran", "often", len(fleet.records("ran", "often")) + 4)
        assert ran[-1]["node"] == near_worker.node

        proxy.restore()
        for near in (near_worker, near_beat):
            assert near.terminate() == 0
        assert (fleet.leader(), fleet.leader("beat")) == (far_worker, far_beat)
        ran = fleet.saw("ran", "often", len(fleet.records("ran", "often")) + 4)
        assert ran[-1]["node"] == far_worker.node
        assert "Traceback" not in far_beat.log
