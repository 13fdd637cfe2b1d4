"""A worker's elections in Celery's event stream, seen by Celery's and others' monitors."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any

import pytest
from celery.events.state import State

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Process
from tests.support.redis_server import free_port
from tests.support.waiting import PATIENCE, wait_until


def said(dump: Process, node: str, what: str, **fields: Any) -> list[re.Match[str]]:
    """The lines of ``celery events --dump`` with one event of one worker."""
    lines = re.finditer(rf"^{node} \[.*?\] worker leader {what}: (.*)$", dump.log, re.MULTILINE)
    return [
        line
        for line in lines
        if all(f"{name}={value}," in f"{line[1]}," for name, value in fields.items())
    ]


def test_celery_events_shows_who_was_elected_who_leads_and_why_no_longer(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(conf=LASTING)
    dump = fleet.monitor()
    leader, follower = sorted(
        fleet.workers("w1", "w2"), key=lambda worker: worker is not fleet.leader()
    )
    term = int(fleet.record()["term"])
    wait_until(
        lambda: said(dump, leader.node, "elected", election="worker", term=term),
        what="the election",
    )
    for node in (leader.node, follower.node):
        wait_until(
            lambda node=node: said(
                dump, node, "changed", election="worker", term=term, leader=leader.node
            ),
            what=f"{node} to say who leads",
        )
    assert leader.terminate() == 0
    wait_until(
        lambda: said(dump, leader.node, "deposed", election="worker", term=term, reason="resigned"),
        what="the deposition",
    )
    wait_until(
        lambda: said(dump, follower.node, "elected", election="worker"), what="the successor"
    )
    assert "sudden=False" in said(dump, leader.node, "deposed")[0][1]
    # The last that is heard of a worker is that it went, so that monitors know.
    wait_until(
        lambda: (
            dump.log.rfind(f"{leader.node} [")
            == max(m.start() for m in re.finditer(rf"{leader.node} \[.*?\] shutdown:", dump.log))
        ),
        what="the shutdown to be the last event",
    )


def test_celerys_own_view_of_the_fleet_takes_the_events(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    state, types = State(), []

    def see(event: dict[str, Any]) -> None:
        state.event(event)
        types.append((event["hostname"], event["type"]))

    with fleet.app.connection_for_read() as own:
        receiver = fleet.app.events.Receiver(own, handlers={"*": see})
        with receiver.consumer_context(wakeup=False) as (connection, _, _):
            wait_until(
                lambda: take_in(connection) or fleet.redis.pubsub_numpat(), what="it to listen"
            )
            (worker,) = fleet.workers("w1")

            def heard(kind: str) -> bool:
                take_in(connection)
                return (worker.node, kind) in types

            def alone() -> bool:
                take_in(connection)
                return not list(state.alive_workers())

            wait_until(lambda: heard("worker-leader-changed"), what="the event")
            assert state.workers[worker.node].alive
            assert worker.terminate() == 0
            wait_until(lambda: heard("worker-leader-deposed"), what="the deposition")
            wait_until(alone, what="the worker to be gone")


def take_in(connection: Any) -> None:
    """Take in what is there."""
    try:
        while True:
            connection.drain_events(timeout=0.05)
    except TimeoutError:
        return


def test_flower_shows_the_workers_and_counts_the_events(
    new_fleet: NewFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flower")
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    fleet = new_fleet(conf=LASTING)
    port = free_port()
    flower = fleet.flower(port)
    wait_until(lambda: fetched(port, "/healthcheck"), timeout=2 * PATIENCE, what="Flower to serve")
    fleet.is_listened_to()
    leader, follower = sorted(
        fleet.workers("w1", "w2"), key=lambda worker: worker is not fleet.leader()
    )

    def rows() -> dict[str, dict[str, Any]]:
        page = fetched(port, "/workers?json=1") or '{"data": []}'
        return {row["hostname"]: row for row in json.loads(page)["data"]}

    def counted(kind: str, node: str) -> bool:
        return bool(rows().get(node, {}).get(f"worker-leader-{kind}"))

    def online() -> set[str]:
        return {node for node, row in rows().items() if row["status"]}

    wait_until(lambda: counted("elected", leader.node), what="the election in Flower")
    wait_until(lambda: counted("changed", follower.node), what="the change in Flower")
    wait_until(lambda: online() == {leader.node, follower.node}, what="both workers in Flower")
    assert leader.terminate() == 0
    wait_until(lambda: counted("deposed", leader.node), what="the deposition in Flower")
    wait_until(lambda: counted("elected", follower.node), what="the successor in Flower")
    wait_until(lambda: online() == {follower.node}, what="the one that went to be offline")
    assert flower.alive
    assert "Traceback" not in flower.log


def fetched(port: int, path: str) -> str | None:
    """A page of Flower's, or ``None`` while it does not serve."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as page:
            return str(page.read().decode())
    except (urllib.error.URLError, OSError):
        return None
