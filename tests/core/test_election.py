"""The state machine on a clock that stands still unless a test moves it."""

from __future__ import annotations

import itertools

import pytest

from celery_leader.core.election import Wait
from celery_leader.core.events import Elected, StepDownRequested
from celery_leader.core.lease import Acquire, Granted, Missing, Refused, Release, Renew, State
from celery_leader.core.timing import Timing
from tests.core.world import LEASE, NAME, Node, World


@pytest.fixture
def world() -> World:
    return World()


# -- who leads ------------------------------------------------------------------------


def test_one_of_a_hundred_candidates_that_start_together_leads(world: World) -> None:
    nodes = [world.node(f"node{i}", seed=i) for i in range(100)]
    world.run(3 * LEASE.lease_duration)
    assert len(world.leaders()) == 1
    assert sum(len(node.terms) for node in nodes) == 1


def test_who_leads_can_be_asked(world: World) -> None:
    assert world.store.read(NAME) is None
    leader = world.leader("a")
    world.pass_time(4)
    record = world.store.read(NAME)
    assert record is not None
    assert record.led
    assert (record.holder, record.term) == ("a", leader.term)
    assert record.remaining == pytest.approx(LEASE.lease_duration - 4, abs=0.01)


def test_a_leader_that_renews_leads_on_with_the_same_term(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.run(20 * LEASE.lease_duration)
    assert leader.leads
    assert len(leader.terms) == 1
    assert not follower.terms


def test_a_follower_asks_about_once_per_renew_interval_and_lease_not_more(world: World) -> None:
    world.leader("a")
    follower = world.follower("b")
    leases = 40
    world.run(leases * LEASE.lease_duration)
    most = leases * LEASE.lease_duration / LEASE.renew_interval
    assert len(follower.requests) <= most


def test_a_follower_sleeps_until_the_lease_can_be_free(world: World) -> None:
    world.leader("a")
    world.pass_time(3)
    follower = world.follower("b")
    assert follower.wakes_at is not None
    left = LEASE.lease_duration - 3
    assert left <= follower.wakes_at - world.now <= left + LEASE.election_jitter + 0.01


# -- resigning ------------------------------------------------------------------------


def test_a_resigned_lease_passes_on_at_once(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    leader.resign()
    assert not leader.leads, "leading ends before the store is told"
    leader.settle()
    follower.hear()
    follower.settle()
    assert follower.leads
    assert leader.depositions == ["resigned"]
    assert follower.terms[0] > leader.terms[0]


def test_jitter_applies_to_expiry_and_not_to_announcements(world: World) -> None:
    timing = Timing(election_jitter=5.0)
    leader = world.leader("a", timing)
    follower = world.follower("b", timing)
    resignation = world.now
    leader.resign()
    leader.settle()
    follower.hear()
    assert follower.wakes_at == resignation

    follower.settle()
    spread = set()
    for seed in range(10):
        late = world.node(f"late{seed}", timing, seed=seed)
        late.settle()
        expiry = world.now + timing.lease_duration
        assert late.wakes_at is not None
        assert expiry - 0.01 <= late.wakes_at <= expiry + timing.election_jitter + 0.01
        spread.add(late.wakes_at)
    assert len(spread) > 5


def test_resigning_when_not_leading_harms_nothing(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    before = world.store.read(NAME)
    follower.resign()
    follower.settle()
    assert follower.election.idle
    assert follower.wakes_at is None
    assert world.store.read(NAME) == before
    assert leader.leads
    assert not follower.terms
    assert not follower.depositions


def test_resigning_twice_is_resigning_once(world: World) -> None:
    leader = world.leader("a")
    leader.resign()
    leader.resign()
    leader.settle()
    leader.resign()
    leader.settle()
    assert leader.depositions == ["resigned"]
    assert [line.kind for line in world.store.history[NAME]] == ["elected", "resigned"]


def test_who_has_resigned_may_campaign_again(world: World) -> None:
    node = world.leader("a")
    node.resign()
    node.settle()
    node.election.campaign(world.now)
    node.settle()
    assert node.leads
    assert node.terms[1] > node.terms[0]


def test_campaigning_again_before_the_release_was_answered_gives_the_lease_up_first(
    world: World,
) -> None:
    node, other = world.leader("a"), world.follower("b")
    node.resign()
    node.election.campaign(world.now)
    assert isinstance(node.election.next_action(world.now), Release)
    world.run(1)
    assert len(world.leaders()) == 1
    assert max(node.terms + other.terms) > node.terms[0]


def test_an_unanswered_release_gives_up_after_the_attempts(world: World) -> None:
    leader = world.leader("a")
    started = world.now
    world.store.lose_requests(1000)
    leader.resign()
    for _ in range(LEASE.renew_attempts):
        assert not leader.election.idle
        leader.turn()
        world.pass_time(LEASE.renew_retry_delay)
    assert leader.election.idle
    assert leader.wakes_at is None
    attempt = LEASE.operation_timeout + LEASE.renew_retry_delay
    assert world.now - started <= LEASE.renew_attempts * attempt + 0.001
    assert all(isinstance(request, Release) for request in leader.requests[1:])


def test_who_steps_down_for_another_makes_way_for_it_and_goes_on_as_a_candidate(
    world: World,
) -> None:
    leader, other = world.leader("a"), world.follower("b")
    leader.step_down("b")
    assert not leader.leads
    world.run(1)
    assert other.leads
    assert leader.depositions == ["transferred"]
    other.resign()
    world.run(1)
    assert leader.leads


def test_who_steps_down_for_nobody_lets_the_others_ask_first(world: World) -> None:
    leader, other = world.leader("a"), world.follower("b")
    leader.step_down()
    world.run(1)
    assert other.leads


def test_who_steps_down_and_is_alone_leads_again_after_the_reservation(world: World) -> None:
    leader = world.leader("a")
    leader.step_down("gone")
    world.run(LEASE.reservation - 0.1)
    assert not leader.leads
    world.run(1)
    assert leader.leads
    assert len(leader.terms) == 2


def test_a_renewal_answered_after_stepping_down_does_not_make_a_leader(world: World) -> None:
    leader = world.leader("a")
    world.pass_time(LEASE.renew_interval)
    request = leader.election.next_action(world.now)
    assert isinstance(request, Renew)
    (reply,) = world.store.perform([request])
    sent_at = world.now
    leader.step_down()
    leader.election.replied(request, reply, sent_at=sent_at, now=world.now)
    assert not leader.leads


# -- priorities -----------------------------------------------------------------------


def test_at_a_handover_the_highest_priority_comes_first_whoever_asks_first(world: World) -> None:
    leader = world.leader("a")
    low, high = world.follower("low"), world.follower("high", priority=1)
    leader.resign()
    leader.settle()
    for node in (low, high, low):
        node.hear()
        node.settle()
    world.run(1)
    assert high.leads
    assert low.terms == []


def test_at_an_expiry_the_highest_priority_comes_first_and_a_dead_one_is_waited_for_briefly(
    world: World,
) -> None:
    world.leader("a").restart()  # it crashed, and its successors have other names
    low, high = world.follower("low"), world.follower("high", priority=1)
    living = [low, high]
    winner, _ = world.run_until_elected(living)
    assert winner is high
    assert low.terms == []
    # Now the one with the higher priority is dead.
    winner, seconds = world.run_until_elected([low])
    assert winner is low
    assert seconds <= LEASE.lease_duration + LEASE.reservation + 1


def test_a_leader_is_told_once_of_each_candidate_that_outranks_it(world: World) -> None:
    leader = world.leader("a")
    world.run(3 * LEASE.renew_interval)
    assert not any(isinstance(change, StepDownRequested) for change in leader.changes)
    world.follower("high", priority=1)
    world.run(3 * LEASE.renew_interval)
    told = [change for change in leader.changes if isinstance(change, StepDownRequested)]
    assert told == [StepDownRequested(NAME, "a", leader.terms[-1], "outranked", "high")]
    assert leader.leads, "to step down is for whoever knows what runs"


def test_who_resigns_in_doubt_gives_up_what_it_may_have_been_granted(world: World) -> None:
    node = world.node("a")
    world.store.lose_replies()
    node.turn()
    assert world.store.rows[NAME].holder == "a"
    assert not node.leads
    node.resign()
    node.settle()
    assert world.store.rows[NAME].state == "released"


def test_a_lease_granted_to_who_has_resigned_meanwhile_is_given_back(world: World) -> None:
    node = world.node("a")
    request = node.election.next_action(world.now)
    assert isinstance(request, Acquire)
    node.resign()
    node.send(request)
    assert not node.leads
    node.settle()
    assert world.store.rows[NAME].state == "released"
    assert not node.terms


# -- a transfer -------------------------------------------------------------------------


def test_a_transfer_is_for_the_successor_and_others_wait_until_the_reservation_ends(
    world: World,
) -> None:
    leader, successor, other = world.leader("a"), world.follower("b"), world.follower("c")
    leader.resign("b")
    leader.settle()
    assert leader.depositions == ["transferred"]
    world.pass_time(LEASE.renew_retry_delay)
    other.hear()
    reply = other.turn()
    assert reply is None or (isinstance(reply, Refused) and reply.record.state is State.RESERVED)
    assert not other.leads
    successor.hear()
    successor.settle()
    assert successor.leads


def test_a_reservation_that_its_successor_does_not_take_ends_by_itself(world: World) -> None:
    leader, other = world.leader("a"), world.follower("c")
    leader.resign("gone")
    started = world.now
    world.run(0.1, [leader, other])
    assert not world.leaders()
    _, waited = world.run_until_elected([other])
    assert other.leads
    reservation = 0.1 * LEASE.lease_duration
    assert world.now - started <= reservation + LEASE.election_jitter + 0.2
    assert waited > 0


def test_a_reservation_ends_although_the_server_clock_was_set_back(world: World) -> None:
    leader, other = world.leader("a"), world.follower("c")
    leader.resign("gone")
    leader.settle()
    world.server_ahead -= 3600
    asked_before = len(other.requests)
    world.run(2 * LEASE.lease_duration, [other])
    assert other.leads
    assert len(other.requests) - asked_before < 20, "it must not ask all the time meanwhile"


# -- crashes and pauses -------------------------------------------------------------------


def test_the_lease_of_a_crashed_leader_passes_on_when_it_expires(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.run(35)
    last_renewal = world.store.rows[NAME].expires_at / 1000 - world.server_ahead
    world.nodes.remove(leader)
    winner, _ = world.run_until_elected([follower])
    assert winner is follower
    assert last_renewal <= world.now <= last_renewal + LEASE.election_jitter + 0.2


def test_a_fresh_candidate_takes_an_expired_lease_at_once(world: World) -> None:
    world.leader("a")
    world.pass_time(LEASE.lease_duration + 1)
    fresh = world.node("b")
    _, waited = world.run_until_elected([fresh])
    assert waited <= LEASE.election_jitter + 0.1


def test_a_leader_that_stopped_renewing_says_not_leader_although_its_record_stands(
    world: World,
) -> None:
    leader = world.leader("a")
    world.pass_time(LEASE.lease_duration - LEASE.margin)
    assert not leader.leads
    record = world.store.read(NAME)
    assert record is not None
    assert record.led
    assert record.holder == "a"


def test_a_thawed_leader_says_so_and_asks_before_it_leads_again(world: World) -> None:
    leader = world.leader("a")
    world.pass_time(10 * LEASE.lease_duration)
    assert not leader.leads
    assert leader.wakes_at == world.now
    assert leader.depositions == ["expired"]
    leader.settle()
    assert leader.leads
    assert leader.terms[1] > leader.terms[0]


def test_a_thawed_leader_that_resigns_gives_up_what_may_still_be_its_own(world: World) -> None:
    leader = world.leader("a")
    world.pass_time(LEASE.lease_duration - LEASE.margin)
    assert not leader.leads
    assert world.store.rows[NAME].state == "held"
    assert isinstance(leader.election.next_action(world.now), Acquire)
    leader.resign()
    leader.settle()
    assert world.store.rows[NAME].state == "released"


def test_a_restarted_process_is_another_candidate_although_it_has_the_same_name(
    world: World,
) -> None:
    node = world.leader("a")
    old_term = node.terms[0]
    node.restart()
    node.settle()
    assert not node.leads, "who led before may still believe so"
    world.run(LEASE.lease_duration + 1, [node])
    assert node.leads
    assert node.terms[-1] > old_term


# -- answers that are late or lost ------------------------------------------------------------


def test_the_deadline_counts_from_before_the_request_was_sent(world: World) -> None:
    prompt, slow = World(), world
    a, b = prompt.node("a"), slow.node("b")
    started = slow.now
    a.turn()
    b.turn(there=0.3, back=0.6)
    assert a.election.valid_until == prompt.now + LEASE.lease_duration - LEASE.margin
    assert b.election.valid_until == started + LEASE.lease_duration - LEASE.margin
    assert slow.store.rows[NAME].expires_at / 1000 - slow.server_ahead > b.election.valid_until


def test_a_slow_renewal_does_not_lengthen_leadership(world: World) -> None:
    leader = world.leader("a")
    world.pass_time(LEASE.renew_interval)
    sent_at = world.now
    reply = leader.turn(there=0.1, back=0.9)
    assert isinstance(reply, Granted)
    assert leader.election.valid_until == sent_at + LEASE.lease_duration - LEASE.margin
    assert leader.wakes_at == sent_at + LEASE.renew_interval


def test_a_reply_later_than_the_lease_is_not_believed_and_is_asked_again(world: World) -> None:
    node = world.node("a")
    reply = node.turn(back=LEASE.lease_duration)
    assert isinstance(reply, Granted)
    assert not node.leads
    assert not node.terms
    assert isinstance(node.election.next_action(world.now), Acquire)
    node.settle()
    assert node.leads
    assert node.terms[0] > reply.term, "the term nobody believed in is not used again"


def test_a_reply_later_than_the_lease_counts_for_nothing_when_another_leads(world: World) -> None:
    node = world.node("a")
    request = node.election.next_action(world.now)
    sent_at = world.now
    assert isinstance(request, Acquire)
    late = world.store.answer(request)
    world.pass_time(LEASE.lease_duration + 1)
    other = world.node("b")
    world.run_until_elected([other])
    node.election.replied(request, late, sent_at=sent_at, now=world.now)
    assert world.leaders() == [other]
    world.run(2 * LEASE.lease_duration)
    assert world.leaders() == [other]


def test_a_lost_reply_to_an_acquire_is_answered_yours_with_the_same_term(world: World) -> None:
    node = world.node("a")
    world.store.lose_replies()
    node.turn()
    assert not node.leads
    granted = world.store.rows[NAME].term
    world.pass_time(LEASE.renew_retry_delay)
    node.turn()
    assert node.term == granted
    assert world.store.rows[NAME].transitions == 1


def test_a_candidate_in_doubt_asks_again_at_once_and_not_after_the_lease(world: World) -> None:
    node = world.node("a")
    world.store.lose_replies()
    node.turn()
    assert node.wakes_at is not None
    assert node.wakes_at <= world.now + LEASE.renew_retry_delay


def test_a_lost_reply_to_a_renewal_costs_nothing(world: World) -> None:
    leader = world.leader("a")
    world.pass_time(LEASE.renew_interval)
    world.store.lose_replies()
    leader.turn()
    assert leader.leads
    world.run(LEASE.lease_duration)
    assert leader.leads
    assert len(leader.terms) == 1


def test_a_lost_reply_to_a_release_is_asked_again_and_announced_once(world: World) -> None:
    leader = world.leader("a")
    world.store.lose_replies()
    leader.resign()
    world.run(2)
    assert leader.election.idle
    assert [line.kind for line in world.store.history[NAME]] == ["elected", "resigned"]


def test_gives_up_after_the_renew_attempts_before_the_lease_can_pass(world: World) -> None:
    leader = world.leader("a")
    elected_at = world.now
    world.pass_time(LEASE.renew_interval)
    world.store.lose_requests(1000)
    while leader.leads:
        wakes_at = leader.wakes_at
        assert wakes_at is not None
        world.now = max(world.now, wakes_at)
        leader.turn()
    renewals = [request for request in leader.requests if isinstance(request, Renew)]
    assert len(renewals) == LEASE.renew_attempts
    assert leader.depositions == ["lost contact"]
    assert world.now - elected_at <= LEASE.renewal_budget
    record = world.store.read(NAME)
    assert record is not None
    assert record.led, "it stops although the key is still its own"
    assert record.remaining > LEASE.margin


def test_who_lost_contact_and_finds_its_lease_again_leads_with_a_higher_term(
    world: World,
) -> None:
    leader = world.leader("a")
    world.store.lose_requests(LEASE.renew_attempts)
    world.run(15)
    assert leader.depositions == ["lost contact"]
    assert leader.leads
    assert leader.terms[1] > leader.terms[0]


def test_a_delayed_duplicate_of_an_acquire_executed_after_the_release_is_refused(
    world: World,
) -> None:
    leader = world.leader("a")
    acquire = leader.requests[0]
    leader.resign()
    leader.settle()
    assert isinstance(world.store.answer(acquire), Refused)
    assert world.store.rows[NAME].state == "released"
    other = world.node("b")
    other.settle()
    assert other.leads


def test_a_delayed_duplicate_of_a_release_does_not_end_the_next_leadership(world: World) -> None:
    node = world.leader("a")
    node.resign()
    node.settle()
    release = node.requests[-1]
    assert isinstance(release, Release)
    node.election.campaign(world.now)
    node.settle()
    world.store.answer(release)
    assert world.store.rows[NAME].state == "held"


def test_a_delayed_acquire_of_who_has_watched_another_state_is_refused(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.pass_time(LEASE.lease_duration + LEASE.election_jitter)
    delayed = follower.election.next_action(world.now)
    assert isinstance(delayed, Acquire)
    assert delayed.watched is not None
    leader.settle()
    assert leader.leads
    world.pass_time(LEASE.lease_duration)
    assert isinstance(world.store.answer(delayed), Refused)


# -- terms ----------------------------------------------------------------------------------


def test_terms_grow_from_leadership_to_leadership(world: World) -> None:
    nodes = [world.node(f"node{i}", seed=i) for i in range(3)]
    for _ in range(20):
        leader, _ = world.run_until_elected()
        leader.resign()
        leader.settle()
        world.run(0.1)
        leader.election.campaign(world.now)
    terms = [line.term for line in world.store.history[NAME] if line.kind == "elected"]
    assert terms == sorted(set(terms))
    assert sorted(term for node in nodes for term in node.terms) == terms


def test_terms_grow_across_a_flush_and_a_clock_set_back_for_who_saw_the_old_one(
    world: World,
) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    leader.resign()
    leader.settle()
    world.store.flush()
    world.server_ahead -= 86_400
    world.run(3 * LEASE.lease_duration, [follower])
    assert follower.leads
    assert follower.terms[0] > leader.terms[0]


def test_a_term_is_at_least_the_microseconds_of_the_server(world: World) -> None:
    leader = world.leader("a")
    assert leader.term == int((world.now + world.server_ahead) * 1e6)


# -- the server's clock ------------------------------------------------------------------------


def test_a_server_clock_set_forward_does_not_hand_the_lease_over(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.run(12)
    world.server_ahead += 3600
    world.run(0.5, [follower])
    follower.election.lost_touch(world.now)
    world.run(5, [follower])
    assert leader.leads
    assert not follower.leads


@pytest.mark.parametrize("step", [0.3, 1.0, 1.24, 2.0, 5.0, 20.0])
def test_a_server_clock_set_forward_between_two_looks_shortens_no_watch(
    world: World, step: float
) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.pass_time(LEASE.renew_interval)
    leader.settle()
    world.server_ahead += step
    follower.election.lost_touch(world.now)
    world.pass_time(LEASE.renew_retry_delay)
    follower.turn()
    assert follower.wakes_at is not None
    assert follower.wakes_at >= leader.election.valid_until + 0.99 * LEASE.margin


def test_a_leader_whose_lease_the_server_thinks_expired_leads_on_with_a_higher_term(
    world: World,
) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.run(1)
    world.server_ahead += 3600
    world.run(LEASE.renew_interval + 1)
    assert leader.leads
    assert not leader.depositions
    assert len(leader.terms) == 2
    assert leader.terms[1] > leader.terms[0]
    assert not follower.terms


def test_who_asks_before_a_lease_has_run_out_for_it_does_not_ask_all_the_time(
    world: World,
) -> None:
    world.leader("a", Timing(election_jitter=0.0))
    follower = world.follower("b", Timing(election_jitter=0.0))
    world.server_ahead += 3600.0
    asked = len(follower.requests)
    for _ in range(5):
        follower.election.lost_touch(world.now)
        world.run(LEASE.renew_retry_delay, [follower])
    assert not follower.leads
    assert len(follower.requests) - asked <= 5


def test_a_server_clock_set_back_does_not_lock_the_lease_for_ever(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.run(12)
    world.server_ahead -= 3600
    world.nodes.remove(leader)
    _, waited = world.run_until_elected([follower])
    assert follower.leads
    assert waited <= 2 * LEASE.lease_duration + LEASE.election_jitter + 0.2
    assert follower.terms[0] > leader.terms[0]


def test_a_lease_is_called_silent_only_after_its_whole_length_on_the_own_clock(
    world: World,
) -> None:
    world.leader("a")
    world.pass_time(5)
    follower = world.follower("b")
    first_seen = world.now
    world.server_ahead -= 3600
    world.run(2 * LEASE.lease_duration, [follower])
    asked = [request for request in follower.requests if isinstance(request, Acquire)]
    assert [request.silent for request in asked] == [False, False, True]
    assert asked[1].watched is not None, "it had run out, and the server did not agree"
    assert follower.leads
    elected_at = world.store.rows[NAME].elected_at / 1000 - world.server_ahead
    assert elected_at >= first_seen + LEASE.lease_duration - 0.001


def test_a_server_clock_set_back_does_not_unseat_a_leader_that_renews(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.run(12)
    world.server_ahead -= 3600
    world.run(10 * LEASE.lease_duration)
    assert leader.leads
    assert len(leader.terms) == 1
    assert not follower.terms


def test_a_server_clock_set_back_and_forward_between_two_looks_shortens_no_watch(
    world: World,
) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.pass_time(2)
    world.server_ahead -= 3600
    world.pass_time(LEASE.renew_interval - 2)
    leader.settle()
    world.server_ahead += 20
    world.pass_time(1)
    follower.election.lost_touch(world.now)
    world.pass_time(LEASE.renew_retry_delay)
    follower.turn()
    assert follower.wakes_at is not None
    assert follower.wakes_at >= leader.election.valid_until + 0.99 * LEASE.margin


def test_the_answer_to_a_release_is_not_a_look_at_the_clock_of_the_server(world: World) -> None:
    former, leader = world.leader("a"), world.follower("b")
    world.store.lose_replies()
    former.resign()
    former.turn()
    leader.hear()
    leader.settle()
    assert leader.leads
    world.server_ahead += 3600
    world.pass_time(LEASE.renew_retry_delay)
    former.settle()
    assert former.election.idle
    former.election.campaign(world.now)
    world.run(LEASE.renew_interval / 2, [former])
    assert leader.leads
    assert not former.leads


# -- a store that loses data ---------------------------------------------------------------------


def test_a_fresh_candidate_makes_the_first_record_at_once(world: World) -> None:
    node = world.node("a")
    assert isinstance(node.turn(), Granted)
    assert node.leads


def test_a_fresh_candidate_waits_for_the_bootstrap_delay_where_one_is_set(world: World) -> None:
    timing = Timing(bootstrap_delay=7.0, election_jitter=0.0)
    node = world.node("a", timing)
    assert isinstance(node.turn(), Missing)
    assert node.wakes_at == world.now + 7.0
    world.pass_time(7.0)
    assert isinstance(node.turn(), Granted)


def test_a_candidate_that_has_seen_a_record_waits_the_longest_lease_it_has_seen(
    world: World,
) -> None:
    long_lease = Timing.of_lease(60)
    leader = world.leader("a", long_lease)
    follower = world.follower("b")
    leader.resign()
    leader.settle()
    short_lease = world.leader("c")
    follower.election.lost_touch(world.now)
    world.pass_time(LEASE.renew_retry_delay)
    follower.settle()
    short_lease.resign()
    short_lease.settle()
    world.store.flush()
    lost_at = world.now
    follower.election.lost_touch(world.now)
    world.run(59, [follower])
    assert not follower.leads
    world.run_until_elected([follower])
    assert 60 <= world.now - lost_at <= 60 + LEASE.renew_retry_delay + LEASE.election_jitter + 0.2


def test_a_look_that_found_no_record_long_ago_is_not_counted_from(world: World) -> None:
    leader, sleeper = world.leader("a"), world.follower("b")
    world.store.flush()
    sleeper.election.lost_touch(world.now)
    world.pass_time(LEASE.renew_retry_delay)
    assert isinstance(sleeper.turn(), Missing)
    world.run(4 * LEASE.lease_duration, [leader])  # while the sleeper is paused
    assert leader.leads
    world.store.flush()
    sleeper.settle()
    assert leader.leads
    assert not sleeper.leads


def test_a_bootstrap_delay_counts_from_the_first_look(world: World) -> None:
    node = world.node("a", Timing(bootstrap_delay=7.0, election_jitter=0.0))
    world.store.lose_requests()
    node.turn()
    world.pass_time(20.0)
    assert isinstance(node.turn(), Missing), "its first look"
    assert node.wakes_at == world.now + 7.0


def test_who_waits_for_a_missing_record_waits_anew_when_somebody_is_elected_meanwhile(
    world: World,
) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.store.flush()
    follower.election.lost_touch(world.now)
    world.pass_time(LEASE.renew_retry_delay)
    assert isinstance(follower.turn(), Missing)
    world.run(LEASE.renew_interval, [leader])
    assert len(leader.terms) == 2, "it was to write its record again"
    world.store.drop(NAME)
    heard_at = world.now
    follower.hear()
    assert isinstance(follower.turn(), Missing)
    assert follower.wakes_at is not None
    assert follower.wakes_at >= heard_at + LEASE.lease_duration


def test_a_leader_whose_record_is_missing_writes_it_again_with_a_higher_term(
    world: World,
) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.store.flush()
    world.run(LEASE.renew_interval + 0.5)
    assert leader.leads
    assert not leader.depositions
    assert leader.terms[1] > leader.terms[0]
    assert world.store.rows[NAME].holder == "a"
    world.run(2 * LEASE.lease_duration)
    assert not follower.terms


def test_a_paused_leader_whose_record_is_missing_does_not_write_it_again(world: World) -> None:
    leader = world.leader("a")
    world.store.flush()
    world.pass_time(LEASE.lease_duration)
    reply = leader.turn()
    assert isinstance(reply, Missing)
    assert not leader.leads
    assert NAME not in world.store.rows


def test_a_record_whose_term_went_back_is_no_evidence(world: World) -> None:
    old = world.leader("a")
    replica = world.store.copy_of(NAME)
    old.resign()
    old.settle()
    leader, follower = world.leader("b"), world.follower("c")
    assert replica is not None
    world.pass_time(LEASE.lease_duration - LEASE.margin - 1)
    world.store.roll_back(NAME, replica)
    follower.election.lost_touch(world.now)
    world.pass_time(LEASE.renew_retry_delay)
    assert isinstance(follower.turn(), Missing)
    follower.settle()
    assert leader.leads
    assert not follower.leads
    leader.settle()
    assert leader.leads
    assert not leader.depositions
    assert world.store.rows[NAME].holder == "b"
    assert leader.terms[1] > leader.terms[0] > old.terms[0]


def test_a_record_whose_renewals_went_back_is_no_evidence(world: World) -> None:
    leader = world.leader("a")
    replica = world.store.copy_of(NAME)
    world.run(LEASE.renew_interval + 1)
    follower = world.follower("b")
    world.run(LEASE.renew_interval)
    follower.election.lost_touch(world.now)
    world.pass_time(LEASE.renew_retry_delay)
    follower.turn()
    assert leader.leads
    world.store.roll_back(NAME, replica)
    follower.election.lost_touch(world.now)
    winner, _ = world.run_until_elected([follower])  # which checks that no two ever lead
    assert winner is follower
    assert world.now >= leader.election.valid_until + LEASE.margin


def test_a_leader_that_finds_another_with_a_higher_term_stops(world: World) -> None:
    leader = world.leader("a")
    world.store.flush()
    fresh = world.node("b")
    fresh.settle()
    assert fresh.leads, "nothing tells a fresh candidate from a first boot"
    world.pass_time(LEASE.renew_interval)
    leader.settle()
    assert not leader.leads
    assert leader.depositions == ["lost"]


def test_with_a_bootstrap_delay_of_a_lease_a_fresh_candidate_does_not_overlap_after_a_flush(
    world: World,
) -> None:
    leader = world.leader("a")
    world.pass_time(2)
    world.store.flush()
    fresh = world.node("b", Timing(bootstrap_delay=LEASE.lease_duration))
    world.run(3 * LEASE.lease_duration, [fresh])
    assert fresh.leads
    assert not leader.leads


# -- what goes out and comes in --------------------------------------------------------------------


def test_a_change_is_told_once_and_in_order(world: World) -> None:
    node = world.node("a")
    node.election.replied(
        node.election.next_action(world.now),  # type: ignore[arg-type]
        world.store.answer(node.election.next_action(world.now)),  # type: ignore[arg-type]
        sent_at=world.now,
        now=world.now,
    )
    assert [type(change) for change in node.election.take_changes()] == [Elected]
    assert node.election.take_changes() == []


def test_a_candidate_that_does_not_campaign_asks_for_nothing(world: World) -> None:
    node = world.node("a")
    node.resign()
    assert node.election.next_action(world.now) == Wait(None)


def test_every_request_has_a_higher_attempt_than_the_one_before(world: World) -> None:
    leader = world.leader("a")
    world.run(5 * LEASE.lease_duration)
    leader.resign()
    leader.settle()
    attempts = [request.attempt for request in leader.requests]
    assert attempts == sorted(set(attempts))


# -- what an act done as a leader brought to light ----------------------------------------------


def test_a_leader_contradicted_by_the_store_stops_and_asks_at_once(world: World) -> None:
    leader = world.leader("a")
    world.store.flush()
    world.leader("b").resign()  # a fresh one could not know better
    assert leader.term is not None
    leader.election.lease_rejected(leader.term, world.now, gone=False)
    assert not leader.leads
    assert leader.wakes_at == world.now
    assert leader.depositions == ["lost"]


def test_a_contradiction_of_an_earlier_term_counts_for_nothing(world: World) -> None:
    leader = world.leader("a")
    assert leader.term is not None
    leader.election.lease_rejected(leader.term - 1, world.now, gone=False)
    leader.election.lease_rejected(leader.term - 1, world.now, gone=True)
    assert leader.leads
    assert leader.wakes_at == world.now + LEASE.renew_interval


def test_a_leader_told_that_its_record_is_missing_writes_it_again_at_once(world: World) -> None:
    leader = world.leader("a")
    world.store.flush()
    assert leader.term is not None
    leader.election.lease_rejected(leader.term, world.now, gone=True)
    assert leader.leads
    leader.settle()
    assert leader.leads
    assert not leader.depositions
    assert leader.terms[1] > leader.terms[0]


# -- orders, holds and reasons ------------------------------------------------------------------


def test_a_leader_hears_an_order_at_once_and_renews_to_learn_what_it_is(world: World) -> None:
    leader, follower = world.leader("a"), world.follower("b")
    world.store.register.ask(NAME, "b")
    world.run(0.01)
    order = StepDownRequested(NAME, "a", leader.terms[-1], "transferred", "b")
    assert [change for change in leader.changes if isinstance(change, StepDownRequested)] == [order]
    assert leader.leads, "to step down is for whoever knows what runs"
    leader.step_down("b")
    world.run(0.01)
    assert follower.leads


def test_an_order_whose_line_was_not_heard_is_told_at_the_next_renewal(world: World) -> None:
    leader = world.leader("a")
    world.store.register.ask(NAME, None)
    leader.election.observed.cursor = world.store.history[NAME][-1].cursor
    world.run(LEASE.renew_interval + 0.1)
    assert any(isinstance(change, StepDownRequested) for change in leader.changes)


def test_a_held_candidate_does_not_ask_all_the_time_and_is_there_when_it_is_let_in(
    world: World,
) -> None:
    world.store.register.hold(NAME, "a", None)
    node = world.node("a")
    world.run(5 * LEASE.lease_duration)
    assert not node.leads
    assert len(node.requests) <= 7
    world.store.register.free(NAME, "a")
    world.run(0.01)
    assert node.leads


def test_what_a_leader_could_not_say_it_says_with_its_next_request(world: World) -> None:
    leader = world.leader("a")
    world.pass_time(2 * LEASE.lease_duration)
    leader.settle()
    reigns = world.store.history_of(NAME, 5)
    assert [reign.reason for reign in reigns] == [None, "expired"]
    told = [line for line in world.store.history[NAME] if line.kind == "ended"]
    assert [line.term for line in told] == [leader.terms[0]]


def cut_off(world: World, leader: Node) -> None:
    """The store answers no request from now on, and the leader gives up."""
    world.store.lose_requests(1000)
    world.run(1.5 * LEASE.renew_interval, [leader])
    assert leader.depositions == ["lost contact"]


def reasons(world: World) -> list[str | None]:
    return [past.reason for past in world.store.history_of(NAME, 5)]


def test_who_lost_contact_and_then_resigns_tells_why_it_led_no_longer(world: World) -> None:
    leader = world.leader("a")
    cut_off(world, leader)
    leader.election.resign(world.now, reason="broker lost")
    world.store.lose_requests(0)
    leader.settle()
    assert reasons(world) == ["lost contact"]


def test_a_release_that_found_another_leader_has_told_nothing_of_the_end(world: World) -> None:
    leader, other = world.leader("a"), world.follower("b")
    cut_off(world, leader)
    world.store.lose_requests(0)
    world.run(2 * LEASE.lease_duration, [other])
    assert reasons(world) == [None, "expired"]
    leader.election.resign(world.now, reason="broker lost")
    leader.settle()
    leader.election.campaign(world.now)
    leader.settle()
    assert reasons(world) == [None, "lost contact"]


def test_an_order_that_was_waiting_is_given_up_for_the_reason_that_was_told(world: World) -> None:
    leader = world.leader("a")
    leader.step_down("b")
    leader.election.abstain(world.now, "clock")
    leader.settle()
    assert leader.depositions == ["transferred"]
    assert reasons(world) == ["transferred"]


def test_a_follower_that_goes_leaves_the_register_with_one_try(world: World) -> None:
    world.leader("a")
    follower = world.follower("b")
    follower.resign()
    follower.settle()
    assert [each.node for each in world.store.register.candidates(NAME)] == ["a"]
    another = world.follower("c")
    another.resign()
    world.store.lose_requests(5)
    another.turn()
    assert another.election.idle, "a process that shuts down must not wait for that"


# -- a store that goes on refusing ---------------------------------------------------------------


def tries(world: World, node: Node, seconds: float, *, lasting: bool) -> list[float]:
    """When ``node`` asks a store that answers nothing, for so long."""
    end, asked = world.now + seconds, []
    while world.now < end:
        action = node.election.next_action(world.now)
        if isinstance(action, Wait):
            assert action.until is not None
            world.now = max(action.until, world.now)
            continue
        asked.append(world.now)
        node.election.unanswered(action, world.now, lasting=lasting)
    return asked


@pytest.mark.parametrize(
    ("lasting", "pause"), [(True, LEASE.lease_duration), (False, 0.1 * LEASE.lease_duration)]
)
def test_who_is_refused_for_long_asks_ever_more_seldom(
    world: World, lasting: bool, pause: float
) -> None:
    asked = tries(world, world.node("a"), 100 * LEASE.lease_duration, lasting=lasting)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    attempts = LEASE.renew_attempts
    assert gaps[: attempts - 1] == pytest.approx([LEASE.renew_retry_delay] * (attempts - 1))
    assert max(gaps) <= pause + 1e-6
    late = gaps[len(gaps) // 2 :]
    assert min(late) >= pause / 2 - 1e-6
    assert len({round(gap, 3) for gap in late}) > len(late) / 2, "not all in step"


def test_a_leader_that_is_refused_tries_as_often_as_before(world: World) -> None:
    leader = world.leader("a")
    world.pass_time(LEASE.renew_interval)
    asked = tries(world, leader, LEASE.renew_attempts * LEASE.renew_retry_delay, lasting=True)
    assert len(asked) == LEASE.renew_attempts
    assert leader.depositions or leader.election.take_changes(), "then it leads no longer"


def test_after_an_answer_the_pauses_begin_anew(world: World) -> None:
    world.leader("a")
    node = world.node("b")
    tries(world, node, 20 * LEASE.lease_duration, lasting=True)
    world.pass_time(LEASE.lease_duration)
    world.run(LEASE.lease_duration)
    assert world.leaders()
    (first, second, *_) = tries(world, node, 3 * LEASE.lease_duration, lasting=True)
    assert second - first == pytest.approx(LEASE.renew_retry_delay)
