"""What real workers hold of a real leader queue is what people and Prometheus are told."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.support import command
from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until


def queue_of(fleet: Fleet) -> Any:
    done = command.run(fleet.app, "status", "--election", "worker", "--json")
    assert done.stderr == "", done
    return json.loads(done.stdout)["elections"][0]["queue"]


def found(fleet: Fleet) -> list[tuple[str, str]]:
    done = command.run(fleet.app, "doctor", "--json")
    assert done.stderr == "", done
    findings = json.loads(done.stdout)["findings"]
    return [(each["severity"], each["what"]) for each in findings if each["about"] == "worker"]


def metrics(port: int) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if "leader_queue_" in line]
    return {
        name.partition("{")[0]: float(value)
        for name, _, value in lines
        if 'election="worker"' in name
    }


@pytest.mark.parametrize("options", [{}, {"global_keyprefix": "pre:", "priority_steps": [0, 5]}])
def test_status_tells_what_waits_and_what_runs_where(
    new_fleet: NewFleet, options: dict[str, Any]
) -> None:
    fleet = new_fleet(conf={**LASTING, "broker_transport_options": options})
    leader = fleet.worker("w1", "-c", "1").says("consuming from celery.leader")
    running = fleet.app.tasks["fleet.hold_late"].delay("running")
    fleet.saw("started", "running")
    for _ in range(10):
        fleet.app.tasks["fleet.lead"].apply_async(("waits",), priority=5)
    later = fleet.app.tasks["fleet.lead"].apply_async(("later",), countdown=900, priority=0)
    wait_until(lambda: queue_of(fleet)["in_flight"] >= 4, what="messages to be fetched")
    told = queue_of(fleet)
    assert told["waiting"] + told["in_flight"] == 12
    (holder,) = told["holders"]
    assert (holder["node"], holder["messages"]) == (leader.node, told["in_flight"])
    first = told["longest_held"][0]
    assert (first["task"], first["id"]) == ("fleet.hold_late", running.id)
    assert (first["node"], first["life"]) == (leader.node, holder["life"])
    assert later.id not in {each["id"] for each in told["longest_held"]}
    lines = command.run(fleet.app, "status", "--election", "worker").stdout
    assert f"longest with {leader.node}: for " in lines
    assert f"fleet.hold_late[{running.id}]" in lines
    fleet.open("running")
    wait_until(lambda: queue_of(fleet)["in_flight"] == 1, what="all but the last to be done")
    assert queue_of(fleet)["waiting"] == 0


def test_doctor_finds_what_is_stranded_until_there_is_a_leader_again(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    leader = fleet.worker("w1", "-c", "1").says("consuming from celery.leader")
    running = fleet.app.tasks["fleet.hold_late"].delay("running")
    fleet.saw("started", "running")
    leader.kill()
    fleet.send("lead", "waits", queue="celery.leader")
    wait_until(lambda: len(found(fleet)) >= 2, what="the lease to end")
    told = "; ".join(what for severity, what in found(fleet) if severity == "critical")
    assert "1 message(s) wait in celery.leader, and nobody leads" in told
    assert f"1 message(s) are stranded with {leader.node}" in told
    fleet.worker("w2", "-c", "1").says("consuming from celery.leader")
    fleet.open("running")
    assert running.get(timeout=30)
    wait_until(lambda: queue_of(fleet)["in_flight"] == 0, what="everything to be done")
    assert not [what for severity, what in found(fleet) if severity == "critical"]


def test_a_message_that_was_set_aside_can_be_put_back_as_doctor_says(new_fleet: NewFleet) -> None:
    fleet = new_fleet(conf=LASTING)
    fleet.redis.rpush("celery.leader", "no message")
    worker = fleet.worker("w1", "-c", "1").says("were set aside in the list")
    (finding,) = [what for _, what in found(fleet) if "set aside" in what]
    assert finding.startswith("1 message(s) of celery.leader")
    done = command.run(fleet.app, "doctor", "--json")
    advice = next(
        each["advice"]
        for each in json.loads(done.stdout)["findings"]
        if "set aside" in each["what"]
    )
    put_back = advice.split("`")[3].split()
    assert put_back[:2] == ["redis-cli", "LMOVE"]
    # It could be read after all: somebody has mended it.
    where = put_back[2]
    good = fleet.app.tasks["fleet.lead"].apply_async(("mended",), queue="elsewhere")
    fleet.redis.lset(where, 0, fleet.redis.lpop("elsewhere"))
    fleet.redis.execute_command(*put_back[1:])
    assert good.get(timeout=30)["node"] == worker.node


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_metrics_tell_how_many_wait_while_one_body_holds_up_the_others(
    new_fleet: NewFleet, pool: str
) -> None:
    pytest.importorskip("prometheus_client")
    ports = [free_port(), free_port()]
    fleet = new_fleet(conf=LASTING)
    leader, other = [started(fleet, f"w{n}", port, pool) for n, port in enumerate(ports, start=1)]
    assert fleet.leader() is leader
    fleet.takes_part(other)
    running = fleet.app.tasks["fleet.hold_late"].delay("running")
    fleet.saw("started", "running")
    for _ in range(20):
        fleet.send("lead", "waits", queue="celery.leader")
    told = wait_until(
        lambda: (seen := metrics(ports[0])).get("celery_leader_queue_messages", 0) > 5 and seen,
        what="what waits to be counted",
    )
    assert sum(told.values()) == 21
    assert metrics(ports[1]) == {"celery_leader_queue_in_flight": 0.0}
    fleet.open("running")
    running.get(timeout=30)
    wait_until(
        lambda: set(metrics(ports[0]).values()) == {0.0}, timeout=60, what="everything to be done"
    )
    leader.terminate()
    wait_until(lambda: len(metrics(ports[1])) == 2, what="the next leader to count")


def started(fleet: Fleet, name: str, port: int, pool: str) -> Process:
    conf = {"leader_metrics_port": port, "leader_metrics_address": "127.0.0.1"}
    worker = fleet.worker(name, "-P", pool, "-c", "1", conf=conf)
    worker.says("metrics at http://127.0.0.1:")
    if name == "w1":
        worker.says("consuming from celery.leader")
    return worker
