"""``celery -A proj leader status``: who leads, for people and for scripts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def led(redis_binary_or_skip: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers and a beat that the tests of this module only look at."""
    directory = tmp_path_factory.mktemp("led")
    with RedisServer() as server, Fleet(directory, server.url, conf=LASTING) as fleet:
        fleet.beat("b1")
        for process in fleet.workers("w1", "w2"):
            fleet.takes_part(process)
        fleet.leader("beat")
        yield fleet


def test_status_names_leader_term_time_left_and_candidates(led: Fleet) -> None:
    leader, beat = led.leader(), led.leader("beat")
    ran = led.run("leader", "status")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"worker: {leader.node}  term {led.record()['term']}  " in ran.stdout
    assert f"beat: {beat.node}  term {led.record('beat')['term']}  " in ran.stdout
    for process in led.processes:
        assert process.node in ran.stdout
    assert f"* {leader.node}" in ran.stdout


def test_status_as_json_is_one_object_for_scripts(led: Fleet) -> None:
    ran = led.run("leader", "status", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    elections = {each["election"]: each for each in json.loads(ran.stdout)["elections"]}
    assert set(elections) == {"worker", "beat", "reports"}
    worker = elections["worker"]
    assert worker["leader"] == led.leader().node
    assert worker["term"] == int(led.record()["term"])
    assert 0 < worker["seconds_left"] <= LASTING["leader_lease_duration"]
    assert worker["transitions"] == 1
    assert {candidate["node"] for candidate in worker["candidates"]} == {"w1@fleet", "w2@fleet"}


def test_status_of_one_election_is_of_that_one_only(led: Fleet) -> None:
    ran = led.run("leader", "status", "--election", "beat", "--json")
    assert ran.returncode == 0
    assert [each["election"] for each in json.loads(ran.stdout)["elections"]] == ["beat"]


def test_an_unknown_election_is_an_error_in_one_line(led: Fleet) -> None:
    ran = led.run("leader", "status", "--election", "nope")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == [
        "Error: there is no election 'nope'; known are beat, reports, worker"
    ]


def test_status_exits_with_1_where_nobody_leads(fleet: Fleet) -> None:
    ran = fleet.run("leader", "status")
    assert ran.returncode == 1
    assert ran.stderr.startswith("Hint: nobody has taken part in namespace 'celery' of redis://")
    assert ran.stdout.splitlines() == [
        "beat: no leader",
        "reports: no leader",
        "worker: no leader",
    ]
    ran = fleet.run("leader", "status", "--json", "--election", "worker")
    assert ran.returncode == 1
    (worker,) = json.loads(ran.stdout)["elections"]
    assert (worker["leader"], worker["term"], worker["candidates"]) == (None, None, [])


def test_status_exits_with_1_after_the_only_worker_has_left(fleet: Fleet) -> None:
    worker = fleet.worker("w1", "-P", "solo").says("consuming from celery.leader")
    assert fleet.run("leader", "status").returncode == 0
    worker.terminate()
    assert fleet.run("leader", "status").returncode == 1


def test_status_without_a_redis_is_an_error_in_one_line(new_fleet: NewFleet) -> None:
    nowhere = new_fleet("redis://:secret@127.0.0.1:1/0")
    ran = nowhere.run("leader", "status", "--json")
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("Error: the Redis in broker_url cannot be reached: ")
    assert "secret" not in line


def test_status_with_a_wrong_password_is_an_error_in_one_line(new_fleet: NewFleet) -> None:
    with RedisServer(("--requirepass", "secret"), password="secret") as guarded:
        fleet = new_fleet(guarded.url)
        ran = fleet.run("leader", "status", broker=guarded.url.replace("secret", "guess"))
        assert (ran.returncode, ran.stdout) == (2, "")
        (line,) = ran.stderr.splitlines()
        assert line.startswith("Error: Redis refused the user name or password in broker_url")


def test_status_of_a_broker_in_memory_says_that_there_is_nothing_to_read(
    new_fleet: NewFleet,
) -> None:
    ran = new_fleet().run("leader", "status", broker="memory://")
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith("Error: ")


def test_status_with_settings_that_cannot_work_is_an_error_in_one_line(
    new_fleet: NewFleet,
) -> None:
    ran = new_fleet().run("leader", "status", conf={"leader_lease_duration": 0})
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == ["Error: leader_lease_duration is 0: it must be above 0"]


def test_status_is_read_from_the_url_of_a_list_that_answers(led: Fleet) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        ran = led.run("leader", "status", broker=f"{dead};{led.config['broker']}")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert led.leader().node in ran.stdout
