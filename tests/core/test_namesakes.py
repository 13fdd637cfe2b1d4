"""Who is who: nodes of one name, copies of a process, and what no candidate can have said."""

from __future__ import annotations

import dataclasses
import time

import pytest

from celery_leader.core.events import Copied, Followed
from celery_leader.core.lease import CLOCK_SLACK, Announcement, life_of
from tests.core.world import LEASE, NAME, World


@pytest.fixture
def world() -> World:
    return World()


# -- nodes of one name ---------------------------------------------------------------------


def test_a_namesake_that_resigns_is_followed_at_once(world: World) -> None:
    first = world.leader("w1@web")
    second = world.follower("w1@web")
    world.run(1)
    first.resign()
    _, took = world.run_until_elected()
    assert second.leads
    assert took < LEASE.election_jitter + 1


def test_a_namesake_that_leads_is_followed_and_not_taken_for_oneself(world: World) -> None:
    leader = world.leader("w1@web")
    follower = world.follower("w1@web")
    world.run(1)
    assert [change for change in follower.changes if isinstance(change, Followed)] == [
        Followed(NAME, "w1@web", leader.terms[0], "w1@web")
    ]
    assert not any(isinstance(change, Followed) for change in leader.changes)


def test_the_term_of_a_namesake_is_not_ones_own(world: World) -> None:
    """An old copy of the record, or a forgery, with our term and another's life."""
    leader = world.leader("w1@web")
    row = world.store.rows[NAME]
    world.store.rows[NAME] = dataclasses.replace(row, nonce="of another life")
    world.run(LEASE.renew_interval + 1)
    assert leader.depositions == ["lost"]


def test_lines_of_an_earlier_version_are_known_by_the_name(world: World) -> None:
    leader = world.leader("a")
    follower = world.follower("b")
    world.run(1)
    asked = len(follower.requests)
    row = world.store.rows[NAME]
    soon = int((world.store.server_clock() + 1) * 1000)
    line = Announcement(NAME, f"{soon}-0", "resigned", "b", row.term, None)
    follower.election.heard(line, world.now)
    follower.settle()
    assert len(follower.requests) == asked, "it is its own"
    line = dataclasses.replace(line, cursor=f"{soon}-1", node="a")
    follower.election.heard(line, world.now)
    follower.settle()
    assert len(follower.requests) == asked + 1
    assert leader.leads


# -- a copy of a process -------------------------------------------------------------------


def test_a_copied_leader_believes_for_a_renewal_and_is_a_candidate_of_its_own_then(
    world: World,
) -> None:
    leader = world.leader("a")
    world.pass_time(LEASE.renew_interval - 1)
    copied = leader.copied()
    assert leader.leads
    assert copied.leads, "until one of them renews"
    term, nonce = leader.term, leader.election.requester.nonce
    world.pass_time(1.001)
    leader.settle()
    copied.settle()
    assert leader.term == term
    assert copied.depositions == ["lost"]
    assert any(isinstance(change, Copied) for change in copied.changes)
    assert copied.election.requester.nonce != nonce == leader.election.requester.nonce
    world.run(3 * LEASE.lease_duration)
    assert leader.term == term, "nobody is in its way"
    leader.resign()
    world.run_until_elected()
    assert copied.leads


def test_a_copied_follower_takes_the_lease_from_nobody(world: World) -> None:
    leader = world.leader("a")
    follower = world.follower("b")
    copied = follower.copied()
    world.run(4 * LEASE.lease_duration)
    assert leader.terms == [leader.term]
    leader.resign()
    world.run_until_elected()
    world.run(4 * LEASE.lease_duration)
    assert len(follower.terms) + len(copied.terms) == 1


def test_who_is_paused_or_unheard_is_no_copy_of_itself(world: World) -> None:
    leader = world.leader("a")
    for _ in range(3):
        world.store.lose_replies()
        world.pass_time(LEASE.renew_interval)
        leader.settle()
        world.run(2)
    world.pass_time(2 * LEASE.lease_duration)
    world.run(LEASE.lease_duration)
    assert leader.leads
    assert not any(isinstance(change, Copied) for change in leader.changes)


# -- what no candidate can have written ---------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True])
def test_a_record_that_makes_no_sense_waits_for_a_lease_unless_one_leads(
    world: World, fresh: bool
) -> None:
    leader = world.leader("a")
    if not fresh:
        world.follower("b")
    world.store.rows[NAME].damaged = True
    other = world.node("c")
    other.settle()
    assert not other.leads, "somebody may lead"
    world.run(LEASE.renew_interval + 1)
    assert leader.leads
    assert len(leader.terms) == 2, "written anew, higher"
    assert not world.store.rows[NAME].damaged


def test_a_record_that_makes_no_sense_is_made_anew_when_nobody_leads(world: World) -> None:
    leader = world.leader("a")
    world.store.rows[NAME].damaged = True
    world.nodes.remove(leader)  # killed
    for name in "bc":
        world.node(name)
    world.run(LEASE.lease_duration - 1)
    assert not world.leaders()
    world.run(2)
    assert len(world.leaders()) == 1
    assert not world.store.rows[NAME].damaged


def test_a_term_of_the_far_future_is_not_learnt(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    absurd = int((world.store.server_clock() + CLOCK_SLACK + 1e6) * 1e6)
    world.store.rows[NAME].term = absurd
    world.run(3 * LEASE.lease_duration)
    assert leader.leads
    assert leader.term is not None
    assert leader.term < absurd
    line = Announcement(NAME, "1-1", "elected", "x", absurd, None)
    follower.election.heard(line, world.now)
    assert follower.election.observed.leader.holder == "a"


def test_what_was_learnt_while_the_clock_was_years_ahead_is_forgotten(world: World) -> None:
    years = 10 * CLOCK_SLACK
    world.server_ahead += years
    leader, follower = world.leader("a"), world.follower("b")
    world.run(LEASE.lease_duration)
    world.server_ahead -= years
    world.run(4 * LEASE.lease_duration)
    (now,) = world.leaders()
    assert now.term is not None
    assert now.term < (world.store.server_clock() + CLOCK_SLACK) * 1e6
    now.resign()
    world.run_until_elected()
    other = follower if now is leader else leader
    assert other.leads


def test_a_line_of_the_far_future_makes_nobody_deaf(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    line = Announcement(NAME, "9999999999999999-0", "elected", "x", 5, None)
    follower.election.heard(line, world.now)
    world.run(LEASE.lease_duration / 2)
    leader.resign()
    _, took = world.run_until_elected()
    assert follower.leads
    assert took < 1


def test_a_life_says_nothing_of_its_nonce() -> None:
    nonce = f"{time.monotonic()}"
    assert nonce not in life_of(nonce)
    assert life_of(nonce) != life_of(nonce + "0")
