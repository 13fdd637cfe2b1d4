"""A fleet whose Redis user may do what the README says that it needs, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import chord

from tests.support import command
from tests.support.fleet import LASTING, Fleet
from tests.support.readme import acl_rules
from tests.support.redis_server import RedisServer

PATIENT = {**LASTING, "leader_operation_timeout": 10.0}
TICK = {"tick": {"task": "lead", "every": 0.2, "args": ["tick"]}}
PASSWORD = "s3cretWord"  # not a word of any message


class RestrictedFleet(Fleet):
    """A fleet that is looked at by a user that may do more than it may itself."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        broker = f"redis://celery:{PASSWORD}@127.0.0.1:{server.port}/0"
        super().__init__(directory, broker, record=server.url, conf=PATIENT, schedule=TICK)
        self.redis.close()
        self.redis = self.leases = redis.Redis.from_url(server.url, decode_responses=True)
        self._open.callback(self.redis.close)

    def refused(self) -> list[str]:
        """What Redis refused the fleet's user, by its own log."""
        found = [(each["reason"], each["object"]) for each in self.redis.acl_log()]
        # redis-py says its name where the server knows the command, and does without.
        return sorted(
            f"{reason} {what}" for reason, what in found if what.partition("|")[0] != "client"
        )


@pytest.fixture
def restricted(own_redis: RedisServer, tmp_path: Path) -> Iterator[RestrictedFleet]:
    with own_redis.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "celery", "reset", "on", f">{PASSWORD}", *acl_rules("celery"))
        )
    with RestrictedFleet(tmp_path, own_redis) as fleet:
        yield fleet


def test_a_fleet_does_all_it_does_with_the_rights_of_the_readme(
    restricted: RestrictedFleet,
) -> None:
    fleet = restricted
    workers = [fleet.worker(name, "-Q", "celery", quiet=False) for name in ("w1", "w2")]
    fleet.beats("b1", "b2")
    for process in workers:
        process.says(" ready.")
        fleet.takes_part(process)
    fleet.saw("ran", "tick", 3)

    fleet.send("plain", "one").get(timeout=60)
    tasks = fleet.app.tasks
    steps = [tasks["fleet.step"].s(1), tasks["fleet.lead_step"].s(2)]
    assert chord(steps)(tasks["fleet.total"].s()).get(timeout=60) == 5

    leader, successor = fleet.leader(), fleet.followers()[0]
    for arguments in (
        ("status", "--json"),
        ("history", "--json"),
        ("healthcheck", "--node", leader.node),
        ("transfer", successor.node, "--election", "worker"),
        ("resign", "--election", "worker"),
        ("hold", leader.node, "--election", "worker"),
        ("release", leader.node, "--election", "worker"),
        ("resign", "--election", "beat"),
    ):
        done = command.run(fleet.app, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done)
    told = fleet.app.control.inspect(timeout=10, limit=2)._request("leader")
    assert set(told) == {process.node for process in workers}
    assert fleet.refused() == []

    report = doctor(fleet)
    assert not [each for each in report["findings"] if each["severity"] == "critical"], report
    # Redis 6 names no subcommands in its log.
    refused = {each.split()[1].partition("|")[0] for each in fleet.refused()}
    assert refused == {"info", "config"}
    unknown = {each["about"]: each["advice"] for each in report["findings"]}
    for about, grant in (("INFO", "+info"), ("CONFIG", "+config|get")):
        assert grant in unknown[about]
    fleet.redis.acl_log_reset()

    before = fleet.record("beat")["term"]
    fleet.leader("beat").terminate()
    fleet.leader("beat")
    assert int(fleet.record("beat")["term"]) > int(before)
    fleet.saw("ran", "tick", len(fleet.records("ran", "tick")) + 2)
    # Given back when its worker ends.
    later = fleet.send("lead", "later", countdown=900)
    fleet.leader().says(f"[{later.id}] received")
    for process in fleet.processes:
        if process.alive:
            assert process.terminate() == 0
    assert fleet.record()["state"] == "released"
    assert fleet.refused() == []


def doctor(fleet: RestrictedFleet) -> dict[str, list[dict[str, str]]]:
    done = command.run(fleet.app, "doctor", "--json")
    assert done.stderr == "", done
    report: dict[str, list[dict[str, str]]] = json.loads(done.stdout)
    return report
