"""``celery -A proj leader healthcheck``: of real workers and beats, by their exit codes."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def well(redis_binary_or_skip: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers that elect, two that take no part in what the command knows of, and a beat."""
    directory = tmp_path_factory.mktemp("well")
    with RedisServer() as server, Fleet(directory, server.url, conf=LASTING) as fleet:
        fleet.beat("b1")
        outside = fleet.worker("out", "-P", "solo", "--no-candidate")
        elsewhere = fleet.worker("else", "-P", "solo", "--elections", "unheard-of")
        for process in fleet.workers("w1", "w2", pool="solo"):
            fleet.takes_part(process)
        outside.says(" ready.")
        elsewhere.says(" ready.")
        fleet.takes_part(elsewhere, "unheard-of")
        fleet.leader("beat")
        yield fleet


def check(fleet: Fleet, *processes: Process) -> subprocess.CompletedProcess[str]:
    named = [part for process in processes for part in ("--node", process.node)]
    return fleet.run("leader", "healthcheck", *named)


def test_leaders_and_followers_are_well(well: Fleet) -> None:
    beat, _, _, one, other = well.processes
    ran = check(well, beat, one, other)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line.split(": ")[0] for line in ran.stdout.splitlines()] == [
        beat.node,
        one.node,
        other.node,
    ]


def test_by_default_the_nodes_of_this_host_are_looked_at(well: Fleet) -> None:
    ran = check(well)
    assert (ran.returncode, ran.stderr) == (0, "")
    (line,) = ran.stdout.splitlines()  # the workers say that they are of another host
    assert line.startswith(f"{well.processes[0].node}: in contact with Redis ")
    assert well.run("leader", "healthcheck", "--node", "beat@%h").returncode == 0


def test_a_worker_that_takes_part_in_no_election_is_not_unwell_for_that(well: Fleet) -> None:
    ran = check(well, well.processes[1])
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "out@fleet: answers, and takes part in no election\n"


def test_a_worker_is_asked_for_elections_that_only_it_was_given(well: Fleet) -> None:
    ran = check(well, well.processes[2])
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("else@fleet: in contact with Redis ")


def test_a_node_that_nobody_heard_of_is_unwell(well: Fleet) -> None:
    ran = well.run("leader", "healthcheck", "--node", "w9@fleet")
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout == "w9@fleet: no contact with Redis in the last 900 s\n"


def test_a_frozen_worker_is_unwell_until_it_goes_on_and_a_killed_beat_for_good(
    fleet: Fleet,
) -> None:
    beat = fleet.beats("b1")[0]
    worker = fleet.workers("w1", pool="solo")[0]

    def code(process: Process) -> int:
        return check(fleet, process).returncode

    assert (code(worker), code(beat)) == (0, 0)
    worker.freeze()
    wait_until(lambda: code(worker) == 1, what="a frozen worker to be unwell")
    worker.thaw()
    wait_until(lambda: code(worker) == 0, what="a thawed worker to be well")
    beat.close()
    ran = check(fleet)
    assert ran.returncode == 1
    assert ran.stdout.startswith((f"{beat.node}: process {beat.pid} has ended", "any node of "))


def test_without_a_redis_nobody_is_well(new_fleet: NewFleet) -> None:
    ran = check(new_fleet("redis://:secret@127.0.0.1:1/0"))
    assert (ran.returncode, ran.stderr) == (1, "")
    (line,) = ran.stdout.splitlines()
    assert line.startswith("no contact with Redis: the Redis in broker_url cannot be reached: ")
    assert "secret" not in line


def test_settings_that_cannot_work_are_an_error_and_not_an_illness(new_fleet: NewFleet) -> None:
    ran = new_fleet().run("leader", "healthcheck", conf={"leader_lease_duration": 0})
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == ["Error: leader_lease_duration is 0: it must be above 0"]


def test_nobody_on_this_host_is_unwell(fleet: Fleet) -> None:
    ran = check(fleet)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout == (
        f"any node of {socket.gethostname()}: no contact with Redis in the last 6 s\n"
    )
