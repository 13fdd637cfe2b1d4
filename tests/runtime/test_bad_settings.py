"""A worker or beat whose settings cannot work says so in one line, and does not start."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fixtures import NewFleet
from tests.support.fleet import Fleet

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "durations that leave no time to renew": (
        {"conf": {"leader_renew_interval": 2.5}},
        "leader_lease_duration (2 s) must be longer than leader_renew_interval",
    ),
    "a broker that keeps no leases": (
        {"broker": "amqp://guest:secret@127.0.0.1:1//"},
        "broker_url (amqp://guest:**@127.0.0.1:1//) is amqp, which cannot keep leases: set"
        " leader_url to a Redis",
    ),
    "a leader_url that is no Redis": (
        {"conf": {"leader_url": "amqp://guest:secret@127.0.0.1:1//"}},
        "leader_url (amqp://guest:**@127.0.0.1:1//) must name a Redis",
    ),
    "a leader_candidate that is no yes or no": (
        {"conf": {"leader_candidate": "no"}},
        "leader_candidate is 'no': it must be True or False",
    ),
    "an election with a name that cannot be a key": (
        {"conf": {"leader_elections": ["a b"]}},
        "leader_elections: 'a b' is not allowed",
    ),
    "workers in the election of the beats": (
        {"conf": {"leader_elections": ["worker", "beat"]}},
        "leader_elections names 'beat': beats elect their leader among themselves",
    ),
    "a duration without end": (
        {"conf": {"leader_lease_duration": float("inf")}},
        "leader_lease_duration is out of range: it must be 1,000,000,000 at most",
    ),
    "attempts that are no whole number": (
        {"conf": {"leader_renew_attempts": 2.5}},
        "leader_renew_attempts is 2.5: it must be a whole number, 1 or more",
    ),
    "less than no replica": (
        {"conf": {"leader_wait_replicas": -1}},
        "leader_wait_replicas is -1: it must be a whole number, 0 or more",
    ),
    "less than no time for unknown tasks": (
        {"conf": {"leader_unknown_task_timeout": -1}},
        "leader_unknown_task_timeout is -1: it must be 1 seconds or more, or 0 to turn it off",
    ),
    "a leader_queue that everybody consumes": (
        {"conf": {"leader_queue": "celery"}},
        "leader_queue is 'celery': it must be the name of a queue of its own",
    ),
    "a sentinel without a master_name": (
        {"conf": {"leader_url": "sentinel://127.0.0.1:1"}},
        "cannot be used: 'master_name' transport option must be specified",
    ),
    "a database that is no number": (
        {"conf": {"leader_url": "redis://127.0.0.1:1/abc"}},
        "127.0.0.1:1/abc) cannot be used: Database is int between 0",
    ),
    "a priority that is no whole number": (
        {"conf": {"leader_priority": 1.5}},
        "leader_priority is 1.5: it must be a whole number from -1000 to 1000",
    ),
}


@pytest.fixture
def broken(new_fleet: NewFleet, redis_url: str) -> Fleet:
    return new_fleet(backend=redis_url, schedule={"tick": {"task": "lead", "every": 0.2}})


@pytest.mark.parametrize("mistake", BAD)
def test_a_setting_that_cannot_work_is_refused_in_one_line_at_the_start(
    broken: Fleet, mistake: str
) -> None:
    config, complaint = BAD[mistake]
    starting = [
        broken.worker("worker", **config),
        broken.beat("beat", **config),
        broken.beat("stock", "-S", "celery.beat:PersistentScheduler", **config),
    ]
    for process in starting:
        assert process.wait() != 0, process.name
        lines = [line for line in process.log.splitlines() if "leader_" in line]
        assert len(lines) == 1, (process.name, lines)
        assert complaint in lines[0]
        assert process.log.rstrip().endswith(lines[0])
        assert "Traceback" not in process.log
        assert "secret" not in process.log
    assert broken.redis.keys("*") == []


def test_a_misspelt_setting_is_told_of_in_the_log_and_holds_nothing_up(broken: Fleet) -> None:
    misspelt = {"conf": {"leader_preempts": True}}
    told = "leader_preempts is no setting of celery_leader and does nothing; did you mean"
    for process in (
        broken.worker("worker", **misspelt),
        broken.beat("beat", **misspelt),
        broken.beat("stock", "-S", "celery.beat:PersistentScheduler", **misspelt),
    ):
        process.says(f"WARNING/MainProcess] {told} leader_preempt?")
        assert process.log.count(told) == 1, process.name
    for election in ("worker", "beat"):
        broken.leader(election)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--elections", "a b"), "--elections: 'a b' is not allowed"),
        (("--elections", "beat"), "--elections names 'beat'"),
        (("--leader-priority", "5000"), "--leader-priority is 5000: it must be a whole number"),
        (("--leader-priority", "high"), "'high' is not a valid integer"),
    ],
)
def test_an_option_that_cannot_work_is_refused_in_one_line(
    broken: Fleet, option: tuple[str, str], complaint: str
) -> None:
    worker = broken.worker("worker", *option)
    assert worker.wait() != 0
    assert complaint in worker.log
    assert "Traceback" not in worker.log
