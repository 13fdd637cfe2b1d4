"""What looks as if it worked and does not is told of when a worker or a beat starts."""

from __future__ import annotations

import json
import socket

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import LASTING, Fleet
from tests.support.waiting import wait_until

TICK = {"tick": {"task": "lead", "every": 3600.0}}
STOCK = "celery.beat:PersistentScheduler"
DOUBLED = "PersistentScheduler sends ordinary periodic tasks from every beat that runs"


@pytest.fixture
def ticking(new_fleet: NewFleet) -> Fleet:
    return new_fleet(schedule=TICK, conf=LASTING)


def findings(fleet: Fleet) -> list[tuple[str, str]]:
    told = json.loads(fleet.run("leader", "doctor", "--json").stdout)["findings"]
    return [(each["severity"], each["what"]) for each in told if each["about"] == "beat"]


def test_beats_that_send_everything_twice_are_told_of_in_logs_status_and_doctor(
    ticking: Fleet,
) -> None:
    first = ticking.beat("s1", "-S", STOCK)
    first.says(f"WARNING/MainProcess] beat: {DOUBLED}: two send each of them twice; to have only")
    first.says("use: celery beat -S leader")
    ticking.takes_part(first, "beat")
    status = ticking.run("leader", "status", "--election", "beat").stdout
    assert f"every ordinary periodic task is sent by {first.node}, leading or not" in status
    ((severity, what),) = [each for each in findings(ticking) if "ordinary" in each[1]]
    assert (severity, "more than once" in what) == ("warning", False)

    second = ticking.beat("s2", "-S", STOCK)
    ticking.takes_part(second, "beat")
    ((severity, what),) = [each for each in findings(ticking) if "ordinary" in each[1]]
    assert (severity, "more than once" in what) == ("critical", True)
    assert "celery.beat.PersistentScheduler" in what


def test_beats_of_ours_are_no_reason_for_a_word(ticking: Fleet) -> None:
    ticking.beats("b1", "b2")
    assert [what for _, what in findings(ticking) if "sends" in what or "differ" in what] == []
    assert not any("WARNING" in process.log for process in ticking.processes)


def test_an_app_that_forgot_install_is_told_when_its_worker_starts(ticking: Fleet) -> None:
    worker = ticking.worker("w1", install=False)
    worker.says("ERROR/MainProcess] this worker takes part in no election, and leader-only tasks")
    worker.says("call celery_leader.install(app) where the app is made")
    assert worker.log.count("takes part in no election") == 1
    installed = ticking.worker("w2")
    installed.says(" ready.")
    assert "takes part in no election" not in installed.log


def test_an_election_that_nobody_else_knows_is_told_of_with_the_one_that_may_be_meant(
    ticking: Fleet,
) -> None:
    worker = ticking.worker("w1", "--elections", "workr")
    worker.says("WARNING/MainProcess] --elections: no leader-only task and no setting names the")
    worker.says("election workr, which this worker now takes part in; did you mean worker?")
    right = ticking.worker("w2", "--elections", "worker")
    right.says(" ready.")
    assert "--elections:" not in right.log


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("beat", "-S", "ledaer"), "there is no scheduler 'ledaer': did you mean leader?"),
        (
            ("beat", "-S", "tests.support.fleet_app:None_"),
            "there is no scheduler 'tests.support.fleet_app:None_'",
        ),
        (("worker", "-B", "--scheduler", "leader-djang"), "did you mean leader-django?"),
    ],
)
def test_a_mistyped_scheduler_is_one_line(
    ticking: Fleet, command: tuple[str, ...], complaint: str
) -> None:
    done = ticking.run(*command)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert complaint in line


def test_a_beat_with_a_name_keeps_it_and_its_hold_over_a_restart(ticking: Fleet) -> None:
    named = {"conf": {"leader_beat_node": "night@%h"}}
    node = f"night@{socket.gethostname()}"
    first = ticking.beat("b1", **named)
    first.says(f"node {node}")
    ticking.run("leader", "hold", "night", "--election", "beat")
    first.says("deposed")
    assert first.terminate() == 0
    ticking.beat("b2", **named)
    register = ticking.key("candidates", "beat")
    wait_until(lambda: ticking.leases.zscore(register, node), what=f"{node} to take part")
    told = json.loads(ticking.run("leader", "status", "--json", "--election", "beat").stdout)
    (candidate,) = told["elections"][0]["candidates"]
    assert (candidate["node"], candidate["state"]) == (node, "held")


def test_a_beat_takes_part_under_the_hostname_it_was_given(ticking: Fleet) -> None:
    if "--hostname" not in ticking.run("beat", "--help").stdout:
        pytest.skip("celery beat has no --hostname before Celery 5.7")
    ticking.beat("b1", "--hostname", "web1").says("elected, term").says("node celerybeat@web1")
    stock = ticking.beat("b2", "-S", STOCK, "-n", "b2@%h")
    stock.says(f"node b2@{socket.gethostname()} follows")
