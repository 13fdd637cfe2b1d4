"""What a candidate knows of who leads, on a clock that stands still unless a test moves it."""

from __future__ import annotations

import pytest

from celery_leader.core.events import Followed
from tests.core.world import LEASE, NAME, World


@pytest.fixture
def world() -> World:
    return World()


def test_a_follower_hears_who_leads_once_per_leadership(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.run(10 * LEASE.lease_duration)
    told = [change for change in follower.changes if isinstance(change, Followed)]
    assert told == [Followed(NAME, "b", leader.term or 0, "a")]
    assert follower.election.observed.leader.holder == "a"


def test_a_leader_knows_itself_and_does_not_follow_itself(world: World) -> None:
    leader = world.leader("a")
    known = leader.election.observed.leader
    assert (known.holder, known.term, known.changes) == ("a", leader.term, 1)
    world.run(10 * LEASE.lease_duration)
    assert known.changes == 1
    assert not any(isinstance(change, Followed) for change in leader.changes)


def test_a_third_candidate_hears_of_a_handover(world: World) -> None:
    leader, successor, third = world.leader("a"), world.follower("b"), world.follower("c")
    leader.resign(successor="b")
    world.run(1.0)
    assert successor.leads
    assert third.election.observed.leader.holder == "b"
    assert third.election.observed.leader.changes == 2
    told = [change.leader for change in third.changes if isinstance(change, Followed)]
    assert told == ["a", "b"]


def test_a_lease_that_is_renewed_leaves_no_time_without_a_leader(world: World) -> None:
    world.leader("a")
    follower = world.follower("b")
    world.run(20 * LEASE.lease_duration)
    assert follower.election.observed.leader.vacant_seconds(world.now) == 0.0


def test_time_without_a_leader_counts_from_where_the_lease_of_a_dead_one_ended(
    world: World,
) -> None:
    leader, follower, third = world.leader("a"), world.follower("b"), world.follower("c")
    leader.election.resign(world.now)  # and dies: nobody is told
    world.run(LEASE.lease_duration + 5, [follower, third])
    assert follower.leads != third.leads
    for node in (follower, third):
        vacant = node.election.observed.leader.vacant_seconds(world.now)
        assert 0.0 < vacant <= LEASE.election_jitter + 0.2, node


def test_time_without_a_leader_goes_on_while_nobody_is_heard_to_lead(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    leader.resign()
    leader.settle()
    follower.hear()
    assert follower.election.observed.leader.holder is None
    world.pass_time(7)
    assert follower.election.observed.leader.vacant_seconds(world.now) == pytest.approx(7)


def test_a_candidate_cut_off_knows_of_no_leader_once_the_lease_it_saw_has_run_out(
    world: World,
) -> None:
    world.leader("a")
    follower = world.follower("b")
    world.store.lose_requests(1000)
    world.run(LEASE.lease_duration + 3, [follower])
    assert follower.election.observed.leader.holder is None
    assert follower.election.observed.leader.vacant_seconds(world.now) == pytest.approx(3, abs=0.5)


def test_that_a_leader_was_there_all_the_time_takes_the_time_without_one_back(
    world: World,
) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.run(LEASE.lease_duration - 5, [follower])
    leader.turn()
    world.store.lose_requests(1000)
    world.run(7, [follower])
    assert follower.election.observed.leader.holder is None
    world.store.lose_requests(0)
    world.run(3, [follower])
    assert follower.election.observed.leader.holder == "a"
    assert follower.election.observed.leader.vacant_seconds(world.now) == 0.0


def test_a_paused_leader_led_until_its_lease_ended_and_not_until_it_woke(world: World) -> None:
    leader = world.leader("a")
    world.pass_time(3 * LEASE.lease_duration)
    leader.settle()
    (deposed,) = [change for change in leader.changes if hasattr(change, "led_for")]
    assert deposed.reason == "expired"
    assert deposed.sudden
    assert deposed.led_for == pytest.approx(LEASE.lease_duration - LEASE.margin, abs=0.01)


def test_resigning_is_not_sudden_and_says_how_long_was_led(world: World) -> None:
    leader = world.leader("a")
    world.run(100.0)
    leader.resign()
    (deposed,) = [change for change in leader.changes if hasattr(change, "led_for")]
    assert not deposed.sudden
    assert deposed.led_for == pytest.approx(100.0, abs=0.5)
