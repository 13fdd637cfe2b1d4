"""What the doctor finds, and what it leaves alone, from facts that are given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from celery import Celery

from celery_leader.core.candidate_info import CandidateInfo
from celery_leader.core.kinship import identity
from celery_leader.core.lease import Record, State
from celery_leader.core.timing import Timing
from celery_leader.ops.doctor import Fleet, examine, findings_table
from celery_leader.ops.election_table import election_table
from celery_leader.ops.overview import Overview
from celery_leader.ops.probe import Server
from celery_leader.runtime.settings import Settings
from celery_leader.store.history import PastLeadership
from celery_leader.store.register import Candidate

TIMING = Timing.of_lease(25)
APP = "proj|0123"

WELL = Server(
    address="redis://localhost:6379/0",
    setting="broker_url",
    info={
        "redis_version": "7.0.15",
        "role": "master",
        "maxmemory_policy": "noeviction",
        "maxmemory": "0",
        "used_memory": "1000",
        "aof_enabled": "1",
        "aof_last_write_status": "ok",
        "rdb_last_bgsave_status": "ok",
        "connected_slaves": "0",
        "connected_clients": "10",
        "maxclients": "10000",
        "latest_fork_usec": "500",
        "cluster_enabled": "0",
    },
    config={"min-replicas-to-write": "0", "timeout": "0", "save": ""},
    round_trips=(0.001, 0.002, 0.001),
    ahead=0.01,
    refused={},
    transactions=True,
)


def record(holder: str = "w1@a", *, remaining: float = 20.0, app: str = APP) -> Record:
    return Record(
        holder=holder,
        term=7,
        state=State.TAKEN,
        remaining=remaining,
        lease_duration=25.0,
        renewals=3,
        elected_at=1_790_000_000.0,
        transitions=1,
        successor=None,
        app=app,
        cursor="1-0",
    )


def beat(node: str, scheduler: str = "celery_leader.beat.LeaderScheduler") -> Candidate:
    fenced = scheduler.startswith("celery_leader.")
    info = CandidateInfo(role="beat", app=APP, scheduler=scheduler, fenced=fenced)
    return Candidate(node, 1.0, info=info)


def candidate(node: str, *, seen_ago: float = 1.0, app: str = APP, **settings: Any) -> Candidate:
    info = CandidateInfo(
        host="a",
        pid=1,
        role="worker",
        app=app,
        versions={"celery_leader": "0.1.0"},
        settings={"leader_lease_duration": 25.0, "leader_queue": "celery.leader", **settings},
    )
    return Candidate(node, seen_ago, info=info)


def contest(*candidates: Candidate, led: Record | None, **held: float) -> Overview:
    return Overview("worker", led, candidates, held, TIMING, app=APP)


HEALTHY = contest(candidate("w1@a"), candidate("w2@b"), led=record())


def fleet(*overviews: Overview, installed: bool = True, unread: str = "", **conf: Any) -> Fleet:
    """These elections, in a fleet whose settings are the default ones but for ``conf``."""
    app = Celery("proj", broker="redis://", set_as_current=False, changes=conf)
    return Fleet(
        installed=installed,
        settings=Settings.of(app),
        overviews=overviews or (HEALTHY,),
        needed=frozenset({"worker"}),
        unread=unread,
    )


def server(*, config: dict[str, str] | None = None, **info: str) -> Server:
    return dataclasses.replace(
        WELL, info={**WELL.info, **info}, config={**WELL.config, **(config or {})}
    )


def found(server: Server = WELL, fleet: Fleet | None = None) -> list[tuple[str, str]]:
    findings = examine(server, fleet or globals()["fleet"]())
    assert all(each.what and each.advice for each in findings)
    return [(each.severity, each.about) for each in findings]


def test_a_server_says_its_own_version_and_not_the_one_that_it_is_like() -> None:
    valkey = server(valkey_version="8.1.1", redis_version="7.2.4")
    assert valkey.as_json()["version"] == "8.1.1"
    assert " Valkey 8.1.1, master" in findings_table(valkey, []).title
    assert server().as_json()["version"] == "7.0.15"
    assert dataclasses.replace(WELL, info={}).as_json()["version"] is None


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert found() == []
    assert findings_table(WELL, []).in_lines().splitlines() == [
        "broker_url redis://localhost:6379/0: Redis 7.0.15, master, answers in 1.0 ms"
        " (2.0 ms at most), clock +0.01 s",
        "    nothing to change",
    ]


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (server(redis_version="6.0.16"), ("critical", "version")),
        (server(cluster_enabled="1"), ("critical", "cluster")),
        (
            dataclasses.replace(server(cluster_enabled="1"), shards=3, one_slot=True),
            ("critical", "cluster"),
        ),
        (server(role="slave", master_host="db1"), ("critical", "role")),
        (server(maxmemory_policy="allkeys-lru", maxmemory="9000"), ("critical", "eviction")),
        (server(maxmemory_policy="allkeys-lru"), ("warning", "eviction")),
        (server(maxmemory_policy="volatile-ttl", maxmemory="9000"), ("warning", "eviction")),
        (server(maxmemory="1050"), ("warning", "memory")),
        (server(aof_enabled="0"), ("warning", "persistence")),
        (server(aof_last_write_status="err"), ("warning", "persistence")),
        (server(rdb_last_bgsave_status="err"), ("warning", "persistence")),
        (server(config={"min-replicas-to-write": "1"}), ("critical", "replicas")),
        (server(config={"timeout": "5"}), ("warning", "timeout")),
        (server(connected_clients="9500"), ("warning", "connections")),
        (server(latest_fork_usec="1500000"), ("warning", "speed")),
        (dataclasses.replace(WELL, round_trips=(0.001, 0.6)), ("warning", "speed")),
        (dataclasses.replace(WELL, round_trips=(0.001, 1.2)), ("critical", "speed")),
        (dataclasses.replace(WELL, ahead=-5.0), ("note", "clocks")),
        (dataclasses.replace(WELL, ahead=300.0), ("warning", "clocks")),
        (dataclasses.replace(WELL, transactions=False), ("note", "rights")),
        (dataclasses.replace(WELL, info={}), ("note", "INFO")),
    ],
)
def test_what_is_wrong_with_a_redis_is_found(server: Server, expected: tuple[str, str]) -> None:
    assert found(server) == [expected]


def test_a_cluster_of_one_shard_works_where_a_hash_tag_keeps_its_keys_together() -> None:
    cluster = server(cluster_enabled="1")
    assert found(dataclasses.replace(cluster, shards=1, one_slot=True)) == []
    assert found(dataclasses.replace(cluster, shards=1)) == [("critical", "cluster")]


def test_a_clock_that_is_off_by_less_than_anybody_can_measure_is_not_reported() -> None:
    assert found(dataclasses.replace(WELL, ahead=1.4, round_trips=(0.9,) * 3))[-1:] == [
        ("warning", "speed")
    ]


def test_volatile_eviction_without_a_limit_of_memory_evicts_nothing() -> None:
    assert found(server(maxmemory_policy="volatile-lru")) == []


def test_replicas_that_nobody_waits_for_are_a_note_and_missing_ones_are_critical() -> None:
    two = server(connected_slaves="2")
    assert found(two) == [("note", "replicas"), ("note", "replicas")]
    waiting = fleet(leader_wait_replicas=3)
    assert found(two, waiting)[0] == ("critical", "replicas")
    assert found(server(connected_slaves="3"), waiting) == [("note", "replicas")]


def test_missing_rights_are_one_finding_that_names_the_commands() -> None:
    why = "the Redis user in broker_url may not do this: no permissions to run {}"
    refused = {name: why.format(name) for name in ("XADD", "HSET")}
    (finding,) = examine(dataclasses.replace(WELL, refused=refused), fleet())
    assert finding.severity == "critical"
    assert "HSET, XADD" in finding.what


def test_what_redis_refuses_to_everybody_is_said_once() -> None:
    why = "the Redis in broker_url refused: NOREPLICAS Not enough good replicas to write."
    refused = dict.fromkeys(("XADD", "HSET", "ZADD"), why)
    (finding,) = examine(dataclasses.replace(WELL, refused=refused), fleet())
    assert (finding.severity, finding.what) == ("critical", why)


@pytest.mark.parametrize(
    ("overview", "expected"),
    [
        (contest(candidate("w1@a"), led=record()), [("note", "worker")]),
        (contest(candidate("w1@a"), candidate("w2@b"), led=None), [("critical", "worker")]),
        (
            contest(candidate("w1@a"), candidate("w2@b"), led=record(remaining=-1.0)),
            [("critical", "worker")],
        ),
        (contest(led=None), [("warning", "worker")]),
        (
            contest(
                candidate("w1@a"), candidate("w2@b"), candidate("w3@c", seen_ago=50), led=record()
            ),
            [("note", "worker")],
        ),
        (
            Overview(
                "worker",
                record(),
                [candidate("w1@a"), candidate("w2@b")],
                {"w9@z": float("inf")},
                TIMING,
            ),
            [("note", "worker")],
        ),
    ],
)
def test_what_is_wrong_with_an_election_is_found(
    overview: Overview, expected: list[tuple[str, str]]
) -> None:
    assert found(fleet=fleet(overview)) == expected


def test_a_leader_that_gave_up_as_not_fit_is_found_and_worse_where_nobody_else_takes_part() -> None:
    lost = (PastLeadership("w9@z", 6, 1.0, 2.0, "broker lost"),)
    beside = dataclasses.replace(HEALTHY, leaderships=lost)
    assert found(fleet=fleet(beside)) == [("warning", "worker")]
    assert "bring back its broker" in examine(WELL, fleet(beside))[0].advice
    alone = dataclasses.replace(contest(led=None), leaderships=lost)
    assert found(fleet=fleet(alone)) == [("critical", "worker")]


def test_an_election_that_nobody_needs_may_have_no_candidates() -> None:
    assert found(fleet=fleet(Overview("beat", None, (), {}, TIMING))) == []


def test_different_settings_are_found_and_a_different_queue_is_critical() -> None:
    mixed = contest(
        candidate("w1@a"),
        candidate("w2@b", leader_lease_duration=5.0, leader_priority=7),
        led=record(),
    )
    (finding,) = examine(WELL, fleet(mixed))
    assert (finding.severity, finding.about) == ("warning", "settings")
    assert finding.what == ("candidates differ in leader_lease_duration: 25.0 (w1@a); 5.0 (w2@b)")
    astray = contest(candidate("w1@a"), candidate("w2@b", leader_queue="x"), led=record())
    assert found(fleet=fleet(astray)) == [("critical", "settings")]


def test_two_projects_in_one_election_are_found_and_a_rolling_deployment_is_not() -> None:
    later = contest(candidate("w1@a"), candidate("w2@b", app="proj|4567"), led=record())
    assert found(fleet=fleet(later)) == []
    renamed = contest(candidate("w1@a"), candidate("w2@b", app="project|0123"), led=record())
    assert found(fleet=fleet(renamed)) == []
    other = contest(candidate("w1@a"), candidate("w2@b", app="shop|89ab"), led=record())
    assert found(fleet=fleet(other)) == [("critical", "worker")]
    theirs = contest(candidate("w1@a"), candidate("w2@b"), led=record(app="shop|89ab"))
    assert found(fleet=fleet(theirs)) == [("critical", "worker")]


def test_two_projects_of_one_name_are_found_and_the_nodes_are_named() -> None:
    ours = identity("app", [f"ours.t{n}" for n in range(9)])
    theirs = identity("app", [f"theirs.t{n}" for n in range(9)])
    mixed = contest(candidate("w1@a", app=ours), candidate("w2@b", app=theirs), led=record(app=""))
    mixed = dataclasses.replace(mixed, app=ours)
    (finding,) = examine(WELL, fleet(mixed))
    assert (finding.severity, finding.about) == ("critical", "worker")
    assert finding.what == "another project takes part: 'app' (w2@b); this one is 'app'"
    assert "leader_namespace" in finding.advice
    assert "another project takes part: 'app' (w2@b)" in election_table(mixed).in_lines()
    doubtful = identity("app", ["theirs.t"])
    mixed = contest(
        candidate("w1@a", app=ours), candidate("w2@b", app=doubtful), led=record(app="")
    )
    assert found(fleet=fleet(dataclasses.replace(mixed, app=ours))) == [("warning", "worker")]


def test_living_nodes_of_one_name_are_found_and_a_killed_one_is_not() -> None:
    def lives(*lives: str, seen_ago: float = 1.0) -> Overview:
        same = [dataclasses.replace(candidate("w1@a", seen_ago=1.0), life=lives[0])]
        same += [
            dataclasses.replace(candidate("w1@a", seen_ago=seen_ago), life=life)
            for life in lives[1:]
        ]
        return contest(*same, candidate("w2@b"), led=record())

    assert ("warning", "names") in found(fleet=fleet(lives("1", "2")))
    assert ("warning", "names") not in found(fleet=fleet(lives("1", "2", seen_ago=60.0)))
    assert ("warning", "names") not in found(fleet=fleet(lives("1")))


def test_unsafe_durations_and_a_missing_install_are_found() -> None:
    short = fleet(leader_lease_duration=2)
    assert ("warning", "durations") in found(fleet=short)
    assert found(fleet=fleet(leader_lease_duration=600)) == []
    assert found(fleet=fleet(installed=False)) == [("warning", "install")]


def test_the_worst_comes_first() -> None:
    everything = dataclasses.replace(server(role="slave", aof_enabled="0"), transactions=False)
    severities = [severity for severity, _ in found(everything)]
    assert severities == ["critical", "warning", "note"]


STOCK = "celery.beat.PersistentScheduler"
DJANGO = "celery_leader.beat.django.LeaderDatabaseScheduler"


@pytest.mark.parametrize(
    ("schedulers", "expected"),
    [
        (["celery_leader.beat.LeaderScheduler"] * 2, []),
        ([STOCK], [("warning", "beat")]),
        ([STOCK, STOCK], [("critical", "beat")]),
        ([STOCK, DJANGO], [("critical", "beat")]),
        (["celery_leader.beat.LeaderScheduler", DJANGO], [("warning", "beat")]),
    ],
)
def test_beats_whose_scheduler_is_none_of_ours_or_another_are_found(
    schedulers: list[str], expected: list[tuple[str, str]]
) -> None:
    beats = [beat(f"b{number}@a", scheduler) for number, scheduler in enumerate(schedulers)]
    overview = Overview("beat", record("b0@a"), beats, {}, TIMING)
    assert [each for each in found(fleet=fleet(overview)) if each != ("note", "beat")] == expected


def test_a_schedule_that_no_beat_reads_is_found_where_a_beat_runs_that_does_not() -> None:
    overview = Overview("beat", record("b1@a"), [beat("b1@a"), beat("b2@a")], {}, TIMING)
    unread = fleet(overview, unread="the entries in the database are not read")
    assert found(fleet=unread) == [("critical", "beat")]
    read = [beat("b1@a", DJANGO), beat("b2@a", DJANGO)]
    overview = Overview("beat", record("b1@a"), read, {}, TIMING)
    assert found(fleet=dataclasses.replace(unread, overviews=(overview,))) == []
