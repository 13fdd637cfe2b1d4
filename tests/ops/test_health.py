"""Which nodes are well, judged by the register of candidates."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from celery_leader.core.timing import Timing
from celery_leader.ops.health import (
    NodeHealth,
    Wanted,
    health_of,
    last_contacts,
    patience,
    process_runs,
)
from celery_leader.store.register import Candidate

HERE = "web1"
PATIENCE = patience(Timing.of_lease(10))


def wells(wanted: Wanted, seen: dict[str, float], *running: int) -> dict[str, bool]:
    found = health_of(wanted, seen, patience=PATIENCE, runs=lambda pid: pid in running)
    return {each.node: each.well for each in found}


def test_a_node_heard_of_within_a_lease_and_a_half_is_well_and_later_is_not() -> None:
    seen = {"celery@web1": 14.9, "mail@web1": 15.1}
    assert wells(Wanted(HERE), seen) == {"celery@web1": True, "mail@web1": False}


def test_a_follower_that_asks_once_a_lease_is_well_at_every_moment() -> None:
    for lease in (0.5, 3.0, 25.0, 3600.0):
        timing = Timing.of_lease(lease)
        silent = timing.lease_duration + timing.election_jitter + 2 * timing.operation_timeout
        assert silent < patience(timing)


def test_by_default_the_nodes_of_this_host_are_asked_for() -> None:
    seen = {"celery@web1": 1.0, "celery@web10": 99.0, "web1@db": 99.0, "beat@web1:7": 2.0}
    assert wells(Wanted(HERE), seen, 7) == {"celery@web1": True, "beat@web1:7": True}


def test_a_name_without_a_process_id_names_the_beat_whatever_its_id() -> None:
    seen = {"beat@web1:7": 1.0, "beat@web10:8": 1.0, "celery@web1": 1.0}
    assert wells(Wanted(HERE, "beat@web1"), seen, 7) == {"beat@web1:7": True}


def test_a_process_of_this_host_that_has_ended_is_not_well_however_lately_it_was_heard_of() -> None:
    (found,) = health_of(
        Wanted(HERE), {"beat@web1:7": 0.1}, patience=PATIENCE, runs=lambda _: False
    )
    assert found == NodeHealth("beat@web1:7", False, "process 7 has ended")


def test_a_process_that_has_ended_does_not_count_where_another_came_after_it() -> None:
    seen = {"beat@web1:7": 3.0, "beat@web1:8": 1.0}
    assert wells(Wanted(HERE), seen, 8) == {"beat@web1:8": True}
    assert wells(Wanted(HERE, "beat@web1:7"), seen, 8) == {"beat@web1:7": False}


def test_the_second_candidate_of_a_process_has_that_process() -> None:
    seen = {"reports@web1:7": 1.0, "reports@web1:7.2": 1.0}
    assert wells(Wanted(HERE), seen, 7) == dict.fromkeys(seen, True)
    assert wells(Wanted(HERE), seen) == dict.fromkeys(seen, False)


def test_the_process_ids_of_another_host_mean_nothing_here() -> None:
    seen = {"beat@web2:7": 1.0}
    assert wells(Wanted(HERE, "beat@web2"), seen) == {"beat@web2:7": True}


def test_of_a_node_never_heard_of_nothing_is_said() -> None:
    assert wells(Wanted(HERE, "celery@web1"), {"celery@web2": 1.0}) == {}
    assert wells(Wanted(HERE), {}) == {}


def test_a_sign_of_life_in_one_election_is_one_in_all() -> None:
    one_each = [Candidate("celery@web1", 20.0), Candidate("celery@web1", 1.0)]
    assert last_contacts(one_each) == {"celery@web1": 1.0}
    assert last_contacts(reversed(one_each)) == {"celery@web1": 1.0}


@pytest.mark.parametrize("pid", [os.getpid(), 1], ids=["this", "the first"])
def test_this_process_and_the_first_of_all_run(pid: int) -> None:
    assert process_runs(pid)


def test_a_process_that_was_waited_for_runs_no_more() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not process_runs(process.pid)
