"""``celery -A proj leader …`` on a real fleet of three workers and two beats."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from celery_leader import LeaderElection
from tests.support import ROOT, command, fleet_app
from tests.support.fleet import LASTING, Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

#: With a Redis that may be slow without being reported for it.
PATIENT = {**LASTING, "leader_operation_timeout": 10.0}
BUSY = {"tick": {"task": "plain", "every": 0.1}}


@pytest.fixture(scope="module")
def led(redis_binary_or_skip: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three workers and two beats whose leases do not run out."""
    directory = tmp_path_factory.mktemp("led")
    with (
        RedisServer() as server,
        Fleet(directory, server.url, conf=PATIENT, schedule=BUSY) as fleet,
    ):
        fleet.beats("b1", "b2")
        for process in fleet.workers("w1", "w2", "w3", pool="solo"):
            fleet.takes_part(process)
            fleet.takes_part(process, "reports")
        yield fleet


def ran(fleet: Fleet, *arguments: str, code: int = 0) -> str:
    """What a command prints that ends with ``code`` and without a word on standard error."""
    done = command.run(fleet.app, *arguments)
    assert (done.returncode, done.stderr) == (code, ""), (arguments, done)
    return done.stdout


def told(fleet: Fleet, *arguments: str, code: int = 0) -> Any:
    return json.loads(ran(fleet, *arguments, "--json", code=code))


def error(fleet: Fleet, *arguments: str) -> str:
    """The one line that a command ends with that cannot be done."""
    done = command.run(fleet.app, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def candidates(fleet: Fleet, election: str = "worker") -> dict[str, Any]:
    (one,) = told(fleet, "status", "--election", election)["elections"]
    return {each["node"]: each for each in one["candidates"]}


def follower(fleet: Fleet, election: str = "worker") -> str:
    role = "b" if election == "beat" else "w"
    return next(p.node for p in fleet.followers(election) if p.name.startswith(role))


# -- seeing -----------------------------------------------------------------------


def test_status_tells_what_each_candidate_is_and_runs_as(led: Fleet) -> None:
    leader = led.leader()
    found = candidates(led)
    assert set(found) == {"w1@fleet", "w2@fleet", "w3@fleet"}
    for process in led.processes[2:]:
        each = found[process.node]
        assert each["pid"] == process.pid
        assert each["role"] == "worker"
        assert each["state"] == ("leader" if process is leader else "follower")
        assert each["settings"]["leader_lease_duration"] == 300.0
        assert set(each["versions"]) >= {"celery", "celery_leader", "redis", "python"}
    assert {each["role"] for each in candidates(led, "beat").values()} == {"beat"}


def test_history_tells_who_led_and_why_no_longer(led: Fleet) -> None:
    former, successor = led.leader("reports").node, follower(led, "reports")
    ran(led, "transfer", successor, "--election", "reports")
    reigns = told(led, "history", "--election", "reports")["reports"]
    assert [reign["node"] for reign in reigns[:2]] == [successor, former]
    assert (reigns[0]["to"], reigns[0]["reason"]) == (None, None)
    assert (reigns[1]["reason"], reigns[1]["successor"]) == ("transferred", successor)
    assert reigns[1]["to"] is not None
    first, *lines = ran(led, "history", "--election", "reports", "--limit", "1").splitlines()
    assert first == "reports:"
    assert len(lines) == 1
    assert "leads" in lines[0]


def test_watch_in_a_pipe_says_what_changes_until_it_is_interrupted(led: Fleet) -> None:
    watching = watch(led).says(f"worker: {led.leader().node}  term ")
    successor = follower(led)
    ran(led, "transfer", successor, "--election", "worker")
    watching.says(f"worker: {successor} elected, term ")
    assert watching.terminate(signal.SIGINT) == 0
    assert "Traceback" not in watching.log
    assert "Aborted" not in watching.log


def test_watch_as_json_is_a_line_for_each_look_and_counts_dispatches(led: Fleet) -> None:
    watching = watch(led, "--json", "--interval", "0.2")
    whole = wait_until(
        lambda: [line for line in watching.log.split("\n")[:-1] if "{" in line][4:],
        what="five looks",
    )
    looks = [json.loads(line) for line in whole]
    rates = [look["dispatched_per_second"] for look in looks if look["dispatched_per_second"]]
    assert rates
    assert all(look["error"] is None for look in looks)
    assert {each["election"] for each in looks[0]["elections"]} == {"beat", "reports", "worker"}
    assert watching.terminate(signal.SIGINT) == 0


def test_watch_at_a_terminal_draws_one_picture_and_gives_the_terminal_back(led: Fleet) -> None:
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.support.fleet_app",
            "leader",
            "status",
            "--watch",
        ],
        cwd=ROOT,
        env=os.environ
        | {
            fleet_app.VARIABLE: json.dumps(led.config),
            "TERM": "xterm",
            "COLUMNS": "150",
            "LINES": "50",
        },
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = read_until(ours, "last changes")
        assert led.leader().node in shown
        watching.send_signal(signal.SIGINT)
        shown += read_to_the_end(ours)
        assert watching.wait(30) == 0
        assert "\x1b[?1049l" in shown  # back to the screen that was there before
        assert "Traceback" not in shown
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)


def watch(fleet: Fleet, *options: str) -> Process:
    return fleet._start("watch", "", ("leader", "status", "--watch", *options), {})


def read_until(descriptor: int, text: str) -> str:
    shown = ""
    while text not in shown:
        shown += os.read(descriptor, 65536).decode("utf-8", "replace")
    return shown


def read_to_the_end(descriptor: int) -> str:
    shown = ""
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # how a terminal says that nobody is there any more
            return shown
        if not data:
            return shown
        shown += data.decode("utf-8", "replace")


# -- moving -----------------------------------------------------------------------


@pytest.mark.parametrize("election", ["worker", "beat"])
def test_transfer_gives_the_lease_to_the_node_that_is_named(led: Fleet, election: str) -> None:
    former, successor = led.leader(election).node, follower(led, election)
    term = int(led.record(election)["term"])
    done = told(led, "transfer", successor, "--election", election)
    assert (done["former"], done["leader"], done["done"]) == (former, successor, True)
    assert done["term"] > term == done["former_term"]
    assert led.leader(election).node == successor


def test_transfer_to_who_cannot_lead_is_an_error_that_says_who_can(led: Fleet) -> None:
    other = follower(led)
    ours = ("--election", "worker")
    refused = command.run(led.app, "transfer", other, *ours, "--timeout", "nan")
    assert refused.returncode == 2
    assert "it must be a number of seconds" in refused.stderr
    line = error(led, "transfer", "w9@fleet", *ours)
    assert line == "there is no candidate 'w9@fleet'; known are w1@fleet, w2@fleet, w3@fleet"
    assert error(led, "transfer", other) == (
        f"{other} takes part in reports, worker: name one with --election"
    )
    assert "may be any of beat@" in error(led, "transfer", "beat")
    assert error(led, "transfer", other, "--election", "nope") == (
        "there is no election 'nope'; known are beat, reports, worker"
    )


def test_transfer_to_who_leads_already_is_done(led: Fleet) -> None:
    leader, term = led.leader().node, int(led.record()["term"])
    done = told(led, "transfer", leader, "--election", "worker")
    assert (done["former"], done["leader"], done["done"]) == (leader, leader, True)
    said = ran(led, "transfer", leader, "--election", "worker")
    assert f"worker: {leader} leads already, term {term}" in said
    assert int(led.record()["term"]) == term


def test_a_node_may_be_named_without_its_host(led: Fleet) -> None:
    successor = follower(led)
    ran(led, "transfer", successor.partition("@")[0], "--election", "worker")
    assert led.leader().node == successor


def test_resign_lets_another_lead(led: Fleet) -> None:
    former = led.leader("beat").node
    done = told(led, "resign", "--election", "beat")
    assert done["former"] == former
    assert done["leader"] not in (None, former)
    assert error(led, "resign") == "beat, reports, worker are led: name one with --election"


def test_a_held_leader_steps_down_and_stays_out_until_it_is_released(led: Fleet) -> None:
    node = led.leader().node
    done = told(led, "hold", node)
    assert (done["node"], done["held_in"], done["still_leads"]) == (node, ["reports", "worker"], [])
    assert led.leader().node != node
    assert candidates(led)[node]["state"] == "held"
    assert f"- {node}  held" in ran(led, "status", "--election", "worker")
    assert "is held" in error(led, "transfer", node, "--election", "worker")
    assert told(led, "release", node)["released_in"] == ["reports", "worker"]
    assert candidates(led)[node]["state"] == "follower"
    assert ran(led, "release", node, code=1) == f"{node} was not held; held are: none\n"
    ran(led, "transfer", node, "--election", "worker")


def test_a_hold_for_a_time_ends_by_itself(led: Fleet) -> None:
    node = follower(led)
    assert ran(led, "hold", node, "--for", "1s").endswith("for 1 s\n")
    wait_until(lambda: not candidates(led)[node]["held"], what="the hold to end")
    assert "--for is 'soon'" in error(led, "hold", node, "--for", "soon")


def test_a_node_that_is_not_there_is_held_only_where_an_election_is_named(led: Fleet) -> None:
    assert "name an --election" in error(led, "hold", "w9@fleet")
    ran(led, "hold", "w9@fleet", "--election", "reports")
    text = ran(led, "status", "--election", "reports")
    assert "w9@fleet is held, and no candidate at present" in text
    ran(led, "release", "w9@fleet")


def test_a_transfer_waits_for_the_bodies_that_run(led: Fleet) -> None:
    former, successor = led.leader().node, follower(led)
    led.app.tasks["fleet.hold"].delay("busy")
    led.saw("started", "busy")
    waiting = told(led, "transfer", successor, "--election", "worker", "--timeout", "0.5", code=1)
    assert (waiting["leader"], waiting["done"], waiting["former"]) == (None, False, former)
    led.open("busy")
    led.saw("finished", "busy")
    wait_until(lambda: led.leader().node == successor, what="the order to be followed")


# -- trusting ---------------------------------------------------------------------


def test_forget_removes_elections_that_nobody_is_in_and_no_others(led: Fleet) -> None:
    done = command.run(led.app, "forget", "worker")
    assert done.returncode == 2
    assert "takes part" in done.stderr
    assert led.record()["holder"]
    with LeaderElection(led.sender(), "one-off") as election:
        assert election.wait_until_leader(30)
    done = command.run(led.app, "forget", "one-off", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"forgotten": ["one-off"]})
    done = command.run(led.app, "forget", "one-off")
    assert (done.returncode, done.stdout) == (1, "one-off was not known to Redis\n")


def test_doctor_finds_nothing_critical_in_a_sound_fleet(led: Fleet) -> None:
    report = told(led, "doctor")
    assert report["well"] is True
    assert report["redis"]["role"] == "master"
    assert (
        0 < report["redis"]["round_trip_seconds"] <= report["redis"]["longest_round_trip_seconds"]
    )
    about = {(each["severity"], each["about"]) for each in report["findings"]}
    assert ("warning", "persistence") in about  # the tests' server keeps nothing
    assert not any(severity == "critical" for severity, _ in about)
    ran(led, "doctor", "--fail-on", "warning", code=1)


def test_doctor_finds_a_policy_that_evicts_leases(led: Fleet) -> None:
    led.redis.config_set("maxmemory", "500mb")
    led.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        report = told(led, "doctor", code=1)
    finally:
        led.redis.config_set("maxmemory-policy", "noeviction")
        led.redis.config_set("maxmemory", "0")
    critical = [each for each in report["findings"] if each["severity"] == "critical"]
    assert [each["about"] for each in critical] == ["eviction"]
    assert "noeviction" in critical[0]["advice"]


def test_doctor_finds_missing_rights_without_writing_anything(led: Fleet) -> None:
    led.redis.execute_command(
        *("ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@read", "+@scripting"),
        *("+@connection", "+@transaction", "+info", "+config|get", "-@dangerous", "+time"),
    )
    port = led.redis.connection_pool.connection_kwargs["port"]
    before = led.redis.hgetall(led.key("election", "worker"))
    done = led.run("leader", "doctor", "--json", broker=f"redis://reader:secret@127.0.0.1:{port}/0")
    assert (done.returncode, done.stderr) == (1, ""), done
    assert "secret" not in done.stdout
    findings = json.loads(done.stdout)["findings"]
    (rights,) = [each for each in findings if each["about"] == "rights"]
    assert rights["severity"] == "critical"
    for name in ("HSET", "XADD", "ZADD", "LPUSH"):
        assert name in rights["what"]
    assert "HMGET" not in rights["what"]
    after = led.redis.hgetall(led.key("election", "worker"))
    assert {k: after[k] for k in ("term", "nonce")} == {k: before[k] for k in ("term", "nonce")}


def test_healthcheck_as_json_says_who_is_well_and_why(led: Fleet) -> None:
    report = told(led, "healthcheck", "--node", "w1@fleet")
    assert report["well"] is True
    (node,) = report["nodes"]
    assert (node["node"], node["well"]) == ("w1@fleet", True)
    assert told(led, "healthcheck", "--node", "w9@fleet", code=1)["well"] is False
