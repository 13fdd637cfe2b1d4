"""Leaders in containers, under what containers suffer: by pytest-celery's components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.smoke.components import DurableRedisContainer, LeaderBeat, LeaderWorker
from tests.smoke.conftest import NewNode
from tests.smoke.fleet import ELECTIONS, ContainerFleet, Node
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(1200)

_LONG = 2.0  # seconds; a body that runs when its worker is struck


def struck(fleet: ContainerFleet, strike: Callable[[Node], Any]) -> list[Node]:
    """Strike both leaders while a leader-only body runs and more wait; others then lead."""
    (running,) = fleet.send(seconds=_LONG)
    waiting = fleet.send(5)
    fleet.started([running])
    leaders = [fleet.leader(election) for election in ELECTIONS]
    for leader in leaders:
        strike(leader)
    for election in ELECTIONS:
        fleet.leader(election, other_than=leaders)
    fleet.started(waiting)
    return leaders


def healed(fleet: ContainerFleet, nodes: list[Node], heal: Callable[[Node], Any]) -> None:
    """Heal ``nodes``; they take part again, and everything sent comes to its end."""
    since = fleet.now()
    for node in nodes:
        heal(node)
    for node in nodes:
        fleet.takes_part(node, since)
        fleet.is_well(node)
    fleet.started(fleet.send(5))
    fleet.settle()
    fleet.judge()


def test_one_of_the_workers_leads_and_runs_what_is_for_the_leader(fleet: ContainerFleet) -> None:
    leader = fleet.leader("worker")
    ids = fleet.send(20, queue="celery")  # which all of them consume
    fleet.started(ids)
    assert {start["node"] for start in fleet.starts()} == {leader.hostname()}
    for node in fleet.nodes:
        fleet.is_well(node)
    fleet.judge()


def test_the_judge_sees_what_would_be_wrong(fleet: ContainerFleet) -> None:
    fleet.started(fleet.send())
    fleet.judge()
    (start,) = fleet.starts()
    twice = fleet.client.xadd("smoke:starts", start)
    with pytest.raises(AssertionError, match="started twice"):
        fleet.judge()
    fleet.client.xdel("smoke:starts", twice)
    elsewhere = fleet.client.xadd("smoke:starts", {**start, "node": "celery@elsewhere"})
    with pytest.raises(AssertionError, match="believed that its worker led while another did"):
        fleet.judge()
    fleet.client.xdel("smoke:starts", elsewhere)
    fleet.judge()
    fleet.client.lpush("ticks", fleet.client.lindex("ticks", -1))
    with pytest.raises(AssertionError, match="a tick was sent twice"):
        fleet.judge()


def test_others_lead_after_docker_kill_and_the_killed_ones_can_come_back(
    fleet: ContainerFleet,
) -> None:
    healed(fleet, struck(fleet, fleet.kill), fleet.start)
    # The body that was cut short is delivered again, as acks_late has it.
    cut_short = fleet.starts()[0]
    fleet.started([cut_short["id"]], times=2)
    fleet.judge()


def test_others_lead_after_docker_stop_and_nothing_runs_twice(fleet: ContainerFleet) -> None:
    leaders = struck(fleet, fleet.stop)
    for leader in leaders:
        lines = fleet.client.xrange(f"celery-leader:celery:history:{leader.election}")
        assert any(
            line["kind"] == "resigned" and leader.is_called(line["node"]) for _, line in lines
        )
    healed(fleet, leaders, fleet.start)


def test_leaders_paused_for_longer_than_their_lease_wake_up_as_followers(
    fleet: ContainerFleet,
) -> None:
    healed(fleet, struck(fleet, fleet.pause), fleet.unpause)


def test_leaders_cut_off_from_the_network_follow_when_they_are_back(
    fleet: ContainerFleet,
) -> None:
    healed(fleet, struck(fleet, fleet.disconnect), fleet.connect)


def test_a_restart_of_redis_loses_and_doubles_nothing(
    fleet: ContainerFleet, durable_redis: DurableRedisContainer
) -> None:
    (running,) = fleet.send(seconds=_LONG)
    waiting = fleet.send(5)
    fleet.started([running])
    before = fleet.now()
    durable_redis.restart()
    fleet.started(waiting)
    for node in fleet.nodes:
        # A worker whose acknowledgement was cut off has what it ran delivered again.
        fleet.harmed.append(node)
        fleet.takes_part(node, since=before)
        fleet.is_well(node)
    fleet.settle()
    fleet.started(fleet.send(5))
    ticks = fleet.client.llen("ticks")
    wait_until(lambda: fleet.client.llen("ticks") > ticks + 1, what="ticks after the restart")
    fleet.judge()


class TestRollingRestart:
    """Of the whole fleet, from the oldest Celery to the newest."""

    @pytest.fixture
    def fleet_image(self, oldest_image: Any) -> Any:
        return oldest_image

    def test_loses_and_doubles_nothing(
        self, fleet: ContainerFleet, new_node: NewNode, celery_base_worker_image: Any
    ) -> None:
        for old in list(fleet.nodes):
            fleet.send(5)
            kind = LeaderWorker if old.election == "worker" else LeaderBeat
            new = new_node(kind, celery_base_worker_image)
            fleet.nodes.append(new)
            fleet.takes_part(new)
            fleet.stop(old)
        fleet.settle()
        fleet.started(fleet.send(5))
        assert all(fleet.leader(election) in fleet.nodes[-5:] for election in ELECTIONS)
        fleet.judge()
