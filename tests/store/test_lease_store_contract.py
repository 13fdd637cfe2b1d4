"""What every lease store does, whether it keeps its records in memory or in Redis."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterable

import pytest

from celery_leader.core.candidate_info import CandidateInfo
from celery_leader.core.lease import (
    Announcement,
    Ended,
    Granted,
    LeaseStore,
    Missing,
    Namesake,
    Record,
    Refused,
    Released,
    Reply,
    Request,
    State,
    StepDown,
    life_of,
)
from celery_leader.errors import LeaderError, StoreUnavailable
from celery_leader.store.history import moment_of
from celery_leader.store.lease_store import RedisLeaseStore
from tests.store.conftest import Wake
from tests.support.fake_store import FakeStore
from tests.support.fixtures import MakeStore
from tests.support.lease_requests import LONG, NAME, acquire, release, renew
from tests.support.records import held
from tests.support.waiting import wait_until

SHORT = 0.05
FOREVER = 60.0


def ask(store: LeaseStore, request: Request) -> Reply:
    (reply,) = store.perform([request])
    assert not isinstance(reply, StoreUnavailable), reply
    return reply


def granted(store: LeaseStore, request: Request) -> Granted:
    reply = ask(store, request)
    assert isinstance(reply, Granted), reply
    return reply


def refused(store: LeaseStore, request: Request) -> Record:
    reply = ask(store, request)
    assert isinstance(reply, Refused), reply
    return reply.record


def record_of(store: LeaseStore, election: str = NAME) -> Record:
    record = store.read(election)
    assert record is not None
    return record


def await_expiry(store: LeaseStore) -> Record:
    wait_until(lambda: record_of(store).remaining < -0.005, what="the lease to expire")
    return record_of(store)


def history(store: LeaseStore, after: str = "0-0") -> list[Announcement]:
    read, write = os.pipe()
    try:
        return store.announcements({NAME: after}, SHORT, read)
    finally:
        os.close(read)
        os.close(write)


# -- the first record ---------------------------------------------------------------------


def test_there_is_no_record_before_the_first_election(store: LeaseStore) -> None:
    assert store.read(NAME) is None


def test_who_may_make_the_first_record_is_elected(store: LeaseStore) -> None:
    reply = granted(store, acquire("a", lease_duration=25))
    record = record_of(store)
    assert record.holder == "a"
    assert record.term == reply.term
    assert record.state is State.TAKEN
    assert record.lease_duration == 25
    assert 0 < record.remaining <= 25
    assert record.led
    assert record.renewals == 0
    assert record.transitions == 1
    assert record.successor is None
    assert record.app == "proj|1"
    assert record.cursor == reply.cursor
    assert abs(record.elected_at - reply.server_time) < 1


def test_who_may_not_make_the_first_record_is_told_it_is_missing(store: LeaseStore) -> None:
    assert isinstance(ask(store, acquire("a", from_missing=False)), Missing)
    assert store.read(NAME) is None


def test_the_server_time_comes_with_every_answer(store: LeaseStore) -> None:
    times = [
        ask(store, request).server_time
        for request in (
            acquire("a", from_missing=False),
            acquire("a"),
            acquire("b"),
            release("a", 2),
        )
    ]
    assert times == sorted(times)
    assert all(abs(moment - time.time()) < 30 for moment in times)


# -- refusals ----------------------------------------------------------------------------------


def test_who_abstains_is_granted_nothing_and_comes_first_to_nobody(store: LeaseStore) -> None:
    shown = acquire("b", abstains=True, priority=5, info='{"host":"h"}')
    assert isinstance(ask(store, shown), Missing)
    term = granted(store, acquire("a")).term
    assert {each.node for each in store.register.candidates(NAME)} == {"a", "b"}
    refused(store, acquire("b", 2, abstains=True, priority=5))
    # It outranks nobody, and no lease is kept for it.
    assert granted(store, renew("a", 2, term, preempted=True)).step_down is None
    ask(store, release("a", 3))
    assert record_of(store).state is State.RELEASED
    refused(store, acquire("b", 3, abstains=True, priority=5))
    granted(store, acquire("b", 4, priority=5))


def test_who_abstains_does_not_outrank_a_priority_below_zero(store: LeaseStore) -> None:
    term = granted(store, acquire("a", priority=-5)).term
    refused(store, acquire("b", abstains=True))
    assert granted(store, renew("a", 2, term, priority=-5, preempted=True)).step_down is None
    refused(store, acquire("c", priority=-5))
    ask(store, release("a", 3, leaving=True))
    # Those who campaign are equal, so the lease is kept for none of them.
    assert record_of(store).state is State.RELEASED


def test_a_second_candidate_is_refused_and_told_who_leads_and_for_how_long(
    store: LeaseStore,
) -> None:
    term = granted(store, acquire("a", lease_duration=25)).term
    record = refused(store, acquire("b"))
    assert (record.holder, record.term) == ("a", term)
    assert 0 < record.remaining <= 25


def test_another_life_of_the_same_node_is_another_candidate(store: LeaseStore) -> None:
    granted(store, acquire("a", nonce="first life"))
    record = refused(store, acquire("a", 2, nonce="second life"))
    assert record.holder == "a"


def test_a_refusal_changes_nothing(store: LeaseStore) -> None:
    granted(store, acquire("a"))
    before = record_of(store)
    refused(store, acquire("b"))
    refused(store, renew("b", 2, before.term))
    refused(store, renew("a", 2, before.term - 1))
    assert isinstance(ask(store, release("b", 3)), Released)
    after = record_of(store)
    assert after.remaining <= before.remaining
    assert _but_remaining(after) == _but_remaining(before)


# -- asking again --------------------------------------------------------------------------------


def test_asking_again_after_a_lost_reply_is_answered_yours_with_the_same_term(
    store: LeaseStore,
) -> None:
    first = granted(store, acquire("a"))
    again = granted(store, acquire("a", 2))
    assert again.term == first.term
    assert again.cursor == first.cursor
    assert record_of(store).renewals == 1, "what others watched has moved"
    assert record_of(store).transitions == 1


def test_a_request_overtaken_by_a_later_one_of_the_same_candidate_is_refused(
    store: LeaseStore,
) -> None:
    term = granted(store, acquire("a", 5)).term
    assert refused(store, acquire("a", 5)).term == term
    assert refused(store, acquire("a", 4)).term == term
    refused(store, renew("a", 4, term))
    granted(store, renew("a", 6, term))
    refused(store, renew("a", 6, term))


def test_a_candidate_that_knows_its_term_but_does_not_lead_gets_a_new_one(
    store: LeaseStore,
) -> None:
    first = granted(store, acquire("a"))
    second = granted(store, acquire("a", 2, seen_term=first.term))
    assert second.term > first.term
    assert record_of(store).transitions == 2


# -- renewing ----------------------------------------------------------------------------------------


def test_a_renewal_runs_from_now_and_is_counted(store: LeaseStore) -> None:
    term = granted(store, acquire("a", lease_duration=5)).term
    reply = granted(store, renew("a", 2, term, lease_duration=100))
    assert reply.term == term
    record = record_of(store)
    assert 5 < record.remaining <= 100
    assert record.lease_duration == 100
    assert record.renewals == 1
    assert record.transitions == 1


def test_an_expired_lease_is_not_renewed(store: LeaseStore) -> None:
    term = granted(store, acquire("a", lease_duration=SHORT)).term
    await_expiry(store)
    record = refused(store, renew("a", 2, term))
    assert record.remaining < 0


def test_a_missing_record_is_not_renewed(store: LeaseStore) -> None:
    assert isinstance(ask(store, renew("a", 1, 7)), Missing)
    assert store.read(NAME) is None


def test_a_released_lease_is_not_renewed(store: LeaseStore) -> None:
    term = granted(store, acquire("a")).term
    ask(store, release("a", 2))
    assert refused(store, renew("a", 3, term)).state is State.RELEASED


# -- giving up ----------------------------------------------------------------------------------------


def test_a_released_lease_goes_to_whoever_asks_next(store: LeaseStore) -> None:
    first = granted(store, acquire("a"))
    assert isinstance(ask(store, release("a", 2)), Released)
    record = record_of(store)
    assert record.state is State.RELEASED
    assert not record.led
    second = granted(store, acquire("b"))
    assert second.term > first.term
    assert record_of(store).transitions == 2


def test_releasing_again_is_harmless_and_announced_once(store: LeaseStore) -> None:
    granted(store, acquire("a"))
    ask(store, release("a", 2))
    ask(store, release("a", 3))
    assert [line.kind for line in history(store)] == ["elected", "resigned"]


def test_an_acquire_that_arrives_after_the_release_is_refused(store: LeaseStore) -> None:
    granted(store, acquire("a", 1))
    ask(store, release("a", 3))
    assert refused(store, acquire("a", 2)).state is State.RELEASED


def test_a_release_that_arrives_after_a_later_acquire_counts_for_nothing(
    store: LeaseStore,
) -> None:
    granted(store, acquire("a", 1))
    granted(store, acquire("a", 3))
    ask(store, release("a", 2))
    assert record_of(store).led


def test_releasing_what_is_not_there_or_not_ours_is_answered_the_same(store: LeaseStore) -> None:
    assert isinstance(ask(store, release("a", 1)), Released)
    granted(store, acquire("b"))
    assert isinstance(ask(store, release("a", 2)), Released)
    assert record_of(store).led


def test_who_released_may_acquire_again(store: LeaseStore) -> None:
    first = granted(store, acquire("a"))
    ask(store, release("a", 2))
    assert granted(store, acquire("a", 3, seen_term=first.term)).term > first.term


# -- transfers ----------------------------------------------------------------------------------------


def test_a_reserved_lease_goes_to_its_successor_only(store: LeaseStore) -> None:
    granted(store, acquire("a"))
    ask(store, release("a", 2, successor="b"))
    record = refused(store, acquire("c"))
    assert record.state is State.RESERVED
    assert record.successor == "b"
    assert 0 < record.remaining <= LONG
    assert not record.led
    refused(store, acquire("a", 3))
    granted(store, acquire("b"))
    assert record_of(store).successor is None


def test_a_reservation_that_has_run_out_binds_nobody(store: LeaseStore) -> None:
    granted(store, acquire("a"))
    ask(store, release("a", 2, successor="gone", reservation=SHORT))
    await_expiry(store)
    granted(store, acquire("c"))


def test_a_reservation_nobody_took_for_a_whole_lease_binds_nobody(store: LeaseStore) -> None:
    # Its end may be far away only because the server's clock was set back.
    term = granted(store, acquire("a")).term
    ask(store, release("a", 2, successor="gone"))
    refused(store, acquire("c", watched=(term, 1), silent=True))
    refused(store, acquire("c", watched=(term, 0), silent=False))
    granted(store, acquire("c", watched=(term, 0), silent=True))


def test_a_reserved_lease_is_not_renewed(store: LeaseStore) -> None:
    term = granted(store, acquire("a")).term
    ask(store, release("a", 2, successor="b"))
    assert refused(store, renew("a", 3, term)).state is State.RESERVED


# -- taking over --------------------------------------------------------------------------------------


def test_an_expired_lease_is_not_for_who_has_not_watched_it_run_out(store: LeaseStore) -> None:
    granted(store, acquire("a", lease_duration=SHORT))
    await_expiry(store)
    assert refused(store, acquire("b")).remaining < 0


def test_an_expired_lease_is_for_who_has_watched_it_run_out(store: LeaseStore) -> None:
    first = granted(store, acquire("a", lease_duration=SHORT))
    await_expiry(store)
    second = granted(store, acquire("b", watched=(first.term, 0)))
    assert second.term > first.term
    assert record_of(store).holder == "b"


def test_renewals_count_by_the_number_of_the_request(store: LeaseStore) -> None:
    """So that an old copy that is renewed does not show what was watched before."""
    term = granted(store, acquire("a", 2)).term
    granted(store, renew("a", 5, term))
    assert record_of(store).renewals == 3
    granted(store, acquire("a", 9))
    assert record_of(store).renewals == 7


def test_a_lease_renewed_since_it_was_watched_is_refused(store: LeaseStore) -> None:
    term = granted(store, acquire("a", lease_duration=SHORT)).term
    granted(store, acquire("a", 2, lease_duration=SHORT))
    await_expiry(store)
    assert refused(store, acquire("b", watched=(term, 0))).renewals == 1
    refused(store, acquire("b", watched=(term, 0), silent=True))
    refused(store, acquire("b", watched=(term - 1, 1)))
    granted(store, acquire("b", watched=(term, 1)))


def test_a_lease_that_runs_is_refused_to_who_watched_it(store: LeaseStore) -> None:
    term = granted(store, acquire("a")).term
    refused(store, acquire("b", watched=(term, 0)))


def test_a_lease_silent_for_its_whole_length_is_over_whatever_the_server_clock_says(
    store: LeaseStore,
) -> None:
    first = granted(store, acquire("a"))
    second = granted(store, acquire("b", watched=(first.term, 0), silent=True))
    assert second.term > first.term


def test_an_expired_lease_is_its_holders_own_with_a_new_term(store: LeaseStore) -> None:
    first = granted(store, acquire("a", lease_duration=SHORT))
    await_expiry(store)
    assert granted(store, acquire("a", 2)).term > first.term


# -- terms ---------------------------------------------------------------------------------------------


def test_a_term_is_at_least_the_microseconds_of_the_server(store: LeaseStore) -> None:
    reply = granted(store, acquire("a"))
    assert abs(reply.term / 1e6 - reply.server_time) < 1


def test_a_term_is_above_what_the_candidate_has_seen(store: LeaseStore) -> None:
    far_ahead = int((time.time() + 1e6) * 1e6)
    assert granted(store, acquire("a", seen_term=far_ahead)).term == far_ahead + 1


def test_a_term_is_above_the_one_before_although_the_clock_went_back(store: LeaseStore) -> None:
    far_ahead = int((time.time() + 1e6) * 1e6)
    granted(store, acquire("a", seen_term=far_ahead))
    ask(store, release("a", 2))
    assert granted(store, acquire("b")).term == far_ahead + 2


def test_a_record_older_than_what_the_candidate_has_seen_is_no_evidence(
    store: LeaseStore,
) -> None:
    old = granted(store, acquire("a")).term
    before = record_of(store)
    reply = ask(store, acquire("b", seen_term=old + 1000, from_missing=False))
    assert isinstance(reply, Missing)
    assert _but_remaining(record_of(store)) == _but_remaining(before)


def test_even_a_released_record_is_no_evidence_when_it_is_old(store: LeaseStore) -> None:
    old = granted(store, acquire("a")).term
    ask(store, release("a", 2))
    reply = ask(store, acquire("b", seen_term=old + 1000, from_missing=False))
    assert isinstance(reply, Missing)


def test_an_old_record_is_written_over_by_who_waited_long_enough(store: LeaseStore) -> None:
    old = granted(store, acquire("a")).term
    new = granted(store, acquire("b", seen_term=old + 1000, from_missing=True)).term
    assert new > old + 1000
    assert record_of(store).holder == "b"


def test_an_old_record_is_written_over_by_who_leads_with_a_higher_term(store: LeaseStore) -> None:
    old = granted(store, acquire("a")).term
    leading = old + 1000
    new = granted(
        store, acquire("b", seen_term=leading, live_term=leading, from_missing=False)
    ).term
    assert new > leading


def test_a_missing_record_is_written_again_by_who_leads(store: LeaseStore) -> None:
    leading = 7
    new = granted(
        store, acquire("a", seen_term=leading, live_term=leading, from_missing=False)
    ).term
    assert new > leading


# -- several at once ---------------------------------------------------------------------------------------


def test_elections_do_not_touch_each_other(store: LeaseStore) -> None:
    granted(store, acquire("a", election="one"))
    granted(store, acquire("b", election="two"))
    ask(store, release("a", 2, election="one"))
    assert record_of(store, "one").state is State.RELEASED
    assert record_of(store, "two").led
    assert [c.node for c in store.register.candidates("two")] == ["b"]


def test_several_requests_are_answered_in_order(store: LeaseStore) -> None:
    replies = store.perform(
        [
            acquire("a", election="one"),
            acquire("b", election="one"),
            acquire("a", election="two", from_missing=False),
            release("a", 2, election="one"),
            acquire("b", 2, election="one"),
        ]
    )
    assert [type(reply) for reply in replies] == [Granted, Refused, Missing, Released, Granted]


def test_no_requests_get_no_answers(store: LeaseStore) -> None:
    assert store.perform([]) == []


# -- history and announcements -------------------------------------------------------------------------------


def test_elections_and_resignations_are_announced_in_order(store: LeaseStore) -> None:
    first = granted(store, acquire("a")).term
    ask(store, release("a", 2, successor="b"))
    second = granted(store, acquire("b")).term
    lines = [(line.kind, line.node, line.term, line.successor) for line in history(store)]
    assert lines == [
        ("elected", "a", first, None),
        ("resigned", "a", first, "b"),
        ("elected", "b", second, None),
    ]
    assert all(line.election == NAME for line in history(store))


def test_the_cursor_of_an_answer_is_where_news_begins(store: LeaseStore) -> None:
    cursor = granted(store, acquire("a")).cursor
    assert history(store, cursor) == []
    assert refused(store, acquire("b")).cursor == cursor
    ask(store, release("a", 2))
    (line,) = history(store, cursor)
    assert line.kind == "resigned"
    assert record_of(store).cursor == line.cursor


def test_news_of_several_elections_come_together(store: LeaseStore, wake: Wake) -> None:
    for election in ("one", "two", "three"):
        granted(store, acquire("a", election=election))
    news = store.announcements({"one": "0-0", "two": "0-0"}, FOREVER, wake.fd)
    assert sorted(line.election for line in news) == ["one", "two"]


def test_old_news_is_there_at_once(store: LeaseStore, wake: Wake) -> None:
    granted(store, acquire("a"))
    started = time.monotonic()
    assert store.announcements({NAME: "0-0"}, FOREVER, wake.fd)
    assert time.monotonic() - started < FOREVER / 2


def test_waiting_for_news_ends_with_its_timeout(store: LeaseStore, wake: Wake) -> None:
    cursor = granted(store, acquire("a")).cursor
    assert store.announcements({NAME: cursor}, SHORT, wake.fd) == []


def test_waiting_for_news_without_any_patience_is_asking_once(
    store: LeaseStore, wake: Wake
) -> None:
    assert store.announcements({NAME: "0-0"}, 0.0, wake.fd) == []


def test_waiting_for_news_ends_when_woken(store: LeaseStore, wake: Wake) -> None:
    cursor = granted(store, acquire("a")).cursor
    timer = threading.Timer(SHORT, wake.up)
    timer.start()
    started = time.monotonic()
    try:
        assert store.announcements({NAME: cursor}, FOREVER, wake.fd) == []
    finally:
        timer.join()
    assert time.monotonic() - started < FOREVER / 2
    assert record_of(store).led, "the store works on"


def test_waiting_for_news_ends_with_a_resignation(
    store: LeaseStore, wake: Wake, request: pytest.FixtureRequest
) -> None:
    cursor = granted(store, acquire("a")).cursor
    other = _beside(store, request)
    timer = threading.Timer(SHORT, lambda: ask(other, release("a", 2)))
    timer.start()
    started = time.monotonic()
    try:
        news = store.announcements({NAME: cursor}, FOREVER, wake.fd)
    finally:
        timer.join()
    assert [(line.kind, line.node) for line in news] == [("resigned", "a")]
    assert time.monotonic() - started < FOREVER / 2


# -- candidates -----------------------------------------------------------------------------------------------


def test_candidates_are_listed_the_latest_first(store: LeaseStore) -> None:
    term = granted(store, acquire("a")).term
    for node in ("b", "c"):
        _next_millisecond(store)
        refused(store, acquire(node))
    _next_millisecond(store)
    granted(store, renew("a", 2, term))
    candidates = store.register.candidates(NAME)
    assert [candidate.node for candidate in candidates] == ["a", "c", "b"]
    assert all(0 <= candidate.seen_ago < 60 for candidate in candidates)


def test_there_are_no_candidates_of_an_election_nobody_asked_for(store: LeaseStore) -> None:
    assert store.register.candidates(NAME) == []


def test_a_candidate_not_heard_of_for_three_leases_is_forgotten(store: LeaseStore) -> None:
    granted(store, acquire("a", lease_duration=SHORT))
    seen_at = time.monotonic()
    wait_until(lambda: time.monotonic() > seen_at + 3.2 * SHORT, what="three leases to pass")
    refused(store, acquire("b", lease_duration=SHORT))
    assert [candidate.node for candidate in store.register.candidates(NAME)] == ["b"]


# -- several lives of one node ------------------------------------------------------------------


def info(pid: int) -> str:
    return CandidateInfo(host="web", pid=pid, role="worker").text()


def test_what_is_announced_says_of_which_life_it_is(store: LeaseStore) -> None:
    granted(store, acquire("a", nonce="first"))
    assert record_of(store).life == life_of("first")
    ask(store, release("a", 2, nonce="first"))
    granted(store, acquire("a", nonce="second"))
    assert [line.life for line in history(store)] == [
        life_of("first"),
        life_of("first"),
        life_of("second"),
    ]


def test_living_nodes_of_one_name_each_have_a_place_and_are_told_of_each_other(
    store: LeaseStore,
) -> None:
    term = granted(store, acquire("a", nonce="first", info=info(1))).term
    reply = ask(store, acquire("a", nonce="second", info=info(2)))
    assert isinstance(reply, Refused)
    assert reply.namesake is None, "the first may have been killed just now"
    told = []
    for attempt in range(2, 5):
        leading = granted(store, renew("a", 10 * attempt, term, nonce="first"))
        if not leading.info_stored:
            again = renew("a", 10 * attempt + 1, term, nonce="first", info=info(1))
            leading = granted(store, again)
        other = ask(store, acquire("a", attempt, nonce="second"))
        assert isinstance(other, Refused)
        assert leading.info_stored
        assert other.info_stored
        assert leading.namesake is not None
        assert other.namesake is not None
        told.append((leading.namesake.place, other.namesake.place))
        assert sorted(
            (each.node, each.life, each.info.pid if each.info else None)
            for each in store.register.candidates(NAME)
        ) == sorted([("a", life_of("first"), 1), ("a", life_of("second"), 2)])
    assert told == [("worker, pid 2 on web", "worker, pid 1 on web")] * 3
    ask(store, release("a", 5, nonce="second", leaving=True))
    assert [each.life for each in store.register.candidates(NAME)] == [life_of("first")]
    reply = granted(store, renew("a", 99, term, nonce="first", info=info(1)))
    assert reply.namesake is None
    assert [each.life for each in store.register.candidates(NAME)] == [life_of("first")]


def test_who_comes_after_a_killed_node_of_its_name_has_its_place(store: LeaseStore) -> None:
    granted(store, acquire("a", nonce="killed", info=info(1)))
    for attempt in range(1, 4):
        reply = ask(store, acquire("a", attempt, nonce="next", info=info(2)))
        assert isinstance(reply, Refused)
        assert reply.namesake is None
        assert [each.life for each in store.register.candidates(NAME)] == [life_of("next")]


def test_a_hold_and_a_transfer_mean_every_life_of_a_name(
    store: RedisLeaseStore | FakeStore,
) -> None:
    term = granted(store, acquire("w", nonce="w", info=info(9))).term
    for nonce in ("first", "second", "first"):
        refused(store, acquire("a", 1, nonce=nonce, info=info(1) if nonce == "second" else ""))
    assert len(store.register.candidates(NAME)) == 3
    store.register.hold(NAME, "a", None)
    assert [each.held_for for each in store.register.candidates(NAME) if each.node == "a"] == [
        float("inf"),
        float("inf"),
    ]
    store.register.free(NAME, "a")
    store.register.ask(NAME, "a")
    assert granted(store, renew("w", 2, term, nonce="w")).step_down == StepDown("transferred", "a")
    ask(store, release("w", 3, nonce="w", successor="a"))
    granted(store, acquire("a", 9, nonce="second"))


def test_two_processes_of_one_nonce_are_one_candidate_whose_requests_count_once(
    store: LeaseStore,
) -> None:
    """A cloned virtual machine: the later of two equal requests is told who was before it."""
    term = granted(store, acquire("a")).term
    granted(store, renew("a", 2, term))
    record = refused(store, renew("a", 2, term))
    assert (record.life, record.attempt) == (life_of("life of a"), 2)


# -- elections that nobody needs any more ------------------------------------------------------------


def test_an_election_is_forgotten_when_nobody_lives_there(
    store: RedisLeaseStore | FakeStore,
) -> None:
    assert not store.register.forget(NAME, LONG)
    granted(store, acquire("a", info=info(1)))
    with pytest.raises(LeaderError, match="takes part"):
        store.register.forget(NAME, LONG)
    ask(store, release("a", 2, leaving=True))
    assert store.register.forget(NAME, LONG)
    assert store.read(NAME) is None
    assert history(store) == []
    assert not store.register.forget(NAME, LONG)


def test_an_election_is_not_forgotten_while_its_lease_may_be_believed_in(
    store: RedisLeaseStore | FakeStore,
) -> None:
    granted(store, acquire("a", lease_duration=SHORT))
    wait_until(lambda: record_of(store).remaining < -3 * SHORT, what="three leases to pass")
    with pytest.raises(LeaderError, match="not over|takes part"):
        store.register.forget(NAME, LONG)
    assert store.register.forget(NAME, SHORT / 2)


# -- the rest --------------------------------------------------------------------------------------------------


def test_at_a_release_the_live_candidate_of_the_highest_priority_comes_first(
    store: LeaseStore,
) -> None:
    term = granted(store, acquire("a")).term
    refused(store, acquire("low"))
    refused(store, acquire("high", priority=5))
    refused(store, acquire("middle", priority=2))
    ask(store, release("a", 2))
    record = record_of(store)
    assert (record.state, record.successor) == (State.RESERVED, "high")
    refused(store, acquire("low", 2))
    assert granted(store, acquire("high", 2, priority=5)).term > term


def test_at_a_release_among_equals_nobody_comes_first(store: LeaseStore) -> None:
    granted(store, acquire("a"))
    for other in ("b", "c"):
        refused(store, acquire(other, priority=5))
    ask(store, release("a", 2))
    assert record_of(store).state is State.RELEASED


def test_a_named_successor_comes_before_any_priority(store: LeaseStore) -> None:
    granted(store, acquire("a"))
    refused(store, acquire("b"))
    refused(store, acquire("high", priority=5))
    ask(store, release("a", 2, successor="b"))
    assert record_of(store).successor == "b"


def test_an_expired_lease_is_kept_a_while_for_the_highest_priority(store: LeaseStore) -> None:
    granted(store, acquire("a", lease_duration=SHORT))
    refused(store, acquire("high", priority=5))
    watched = await_expiry(store)
    found = acquire("low", watched=(watched.term, watched.renewals), reservation=SHORT)
    record = refused(store, found)
    assert (record.state, record.successor) == (State.RESERVED, "high")
    assert history(store)[-1].kind == "reserved"
    await_expiry(store)
    assert granted(store, acquire("low", 2)).term > watched.term, "it was not taken in time"


def test_an_expired_lease_is_for_who_asks_if_none_there_has_a_higher_priority(
    store: LeaseStore,
) -> None:
    granted(store, acquire("a", lease_duration=SHORT))
    refused(store, acquire("b", priority=5))
    watched = await_expiry(store)
    granted(store, acquire("c", priority=5, watched=(watched.term, watched.renewals)))


def test_a_candidate_not_heard_of_for_a_lease_and_a_half_is_not_waited_for(
    store: LeaseStore,
) -> None:
    granted(store, acquire("a", lease_duration=SHORT))
    refused(store, acquire("high", lease_duration=SHORT, priority=5))
    watched = await_expiry(store)
    wait_until(lambda: record_of(store).remaining < -SHORT, what="another lease to pass")
    found = acquire("b", lease_duration=SHORT, watched=(watched.term, watched.renewals))
    granted(store, found)


def test_a_leader_that_asks_is_told_who_has_a_higher_priority(store: LeaseStore) -> None:
    term = granted(store, acquire("a", priority=1)).term
    refused(store, acquire("low"))
    assert granted(store, renew("a", 2, term, priority=1, preempted=True)).step_down is None
    refused(store, acquire("high", priority=2))
    assert granted(store, renew("a", 3, term, priority=1)).step_down is None, "it did not ask"
    told = granted(store, renew("a", 4, term, priority=1, preempted=True)).step_down
    assert told == StepDown("outranked", "high")


def test_candidates_are_listed_with_their_priorities(store: LeaseStore) -> None:
    granted(store, acquire("a", priority=-3))
    refused(store, acquire("b"))
    assert {each.node: each.priority for each in store.register.candidates(NAME)} == {
        "a": -3,
        "b": 0,
    }


def test_names_of_any_script_come_back_as_they_went(store: LeaseStore) -> None:
    name = "wörker 1@höst:'\"{}\\"
    granted(store, acquire(name, app="prøj|1"))
    record = record_of(store)
    assert (record.holder, record.app) == (name, "prøj|1")
    assert [candidate.node for candidate in store.register.candidates(NAME)] == [name]
    assert history(store)[0].node == name


def test_a_closed_store_opens_again_when_asked(store: LeaseStore) -> None:
    granted(store, acquire("a"))
    store.close()
    store.close()
    assert record_of(store).holder == "a"


def test_history_keeps_to_its_size(make_store: MakeStore) -> None:
    for store in (FakeStore(time.time, history_size=5), make_store(history_size=5)):
        for attempt in range(1, 20, 2):
            granted(store, acquire("a", attempt))
            ask(store, release("a", attempt + 1))
        lines = history(store)
        assert len(lines) == 5
        assert lines[-1].kind == "resigned"


def _let_short_leases_run_out() -> None:
    """In both stores, before either is asked again."""
    moment = time.monotonic()
    while time.monotonic() < moment + 2 * INSTANT:
        time.sleep(INSTANT)


def test_memory_and_redis_answer_any_sequence_of_requests_alike(make_store: MakeStore) -> None:
    seed = int(os.environ.get("CELERY_LEADER_TEST_SEED") or random.SystemRandom().randrange(10**9))
    print(f"CELERY_LEADER_TEST_SEED={seed}")
    chance = random.Random(seed)
    fake, real = FakeStore(time.time), make_store()
    for schedule in range(12):
        election = f"schedule{schedule}"
        terms_of_fake: list[int] = []
        terms_of_real: list[int] = []
        said: list[str] = []
        for _ in range(40):
            scene = chance.getrandbits(64)
            # A candidate's priority is forgotten with it, some leases later: short ones have none.
            ranked = bool(schedule % 2)
            ours = _random_request(random.Random(scene), election, fake, terms_of_fake, ranked)
            theirs = _random_request(random.Random(scene), election, real, terms_of_real, ranked)
            answers = [
                _in_words(ask(fake, ours), terms_of_fake, ranked),
                _in_words(ask(real, theirs), terms_of_real, ranked),
            ]
            said.append(f"{theirs} -> {answers[1]}")
            assert answers[0] == answers[1], "\n".join(said[-8:])
            _let_short_leases_run_out()
            told = [
                _random_order(random.Random(scene), store, election, ranked)
                for store in (fake, real)
            ]
            said.append(f"{told[1]}")
            assert told[0] == told[1], "\n".join(said[-8:])
            _let_short_leases_run_out()
        lines = []
        for each, terms in ((fake, terms_of_fake), (real, terms_of_real)):
            history = each.announcements({election: "0-0"}, 0, None)
            _assert_that_ends_are_told_right(history)
            lines.append([_line_in_words(line, terms) for line in history])
        assert lines[0] == lines[1]
        # Which of the others is forgotten when depends on the instant, in the short leases.
        if ranked:
            assert _register_of(fake, election) == _register_of(real, election)


def _random_order(
    chance: random.Random, store: RedisLeaseStore | FakeStore, election: str, ranked: bool
) -> object:
    """What somebody asks for in between, and what came of it, but for who is forgotten soon."""
    node = chance.choice("abcd")
    kind = chance.random()
    if kind < 0.03:
        return _spoil(store, election)
    if kind < 0.1:
        try:
            return store.register.ask(
                election, chance.choice([None, node if ranked else None])
            ).holder
        except LeaderError as exc:
            return type(exc)
    if kind < 0.2:
        duration, at_once = chance.choice([None, LONG]), chance.random() < 0.3
        return store.register.hold(election, node, duration, at_once=at_once) or not ranked
    if kind < 0.4:
        return store.register.free(election, node)
    return held(store, election).keys()


def _spoil(store: RedisLeaseStore | FakeStore, election: str) -> None:
    """Have the record make no sense, if there is one."""
    if isinstance(store, FakeStore):
        if election in store.rows:
            store.rows[election].damaged = True
        return
    key = store.keys.of("election", election)
    (there,) = store.client.call_all([["EXISTS", key]])
    if there:
        store.client.call_all([["HSET", key, "renewals", "-1"]])


def _assert_that_ends_are_told_right(history: list[Announcement]) -> None:
    """No leadership ended before it began or after the next did; who tells of its own is exact."""
    led_from: dict[int, float] = {}
    latest = 0
    for line in history:
        if line.ended_at is not None:
            told_at = moment_of(line)
            which = line.term if line.kind in ("ended", "reserved") else latest
            if line.kind == "ended":
                assert told_at - line.ended_at == pytest.approx(AGO, abs=AGO / 2), line
            else:
                assert led_from.get(which, 0.0) <= line.ended_at <= told_at + AGO / 100, line
        if line.kind == "elected":
            latest = line.term
            led_from[latest] = moment_of(line)


def _line_in_words(line: Announcement, terms: list[int]) -> object:
    which = terms.index(line.term) if line.term in terms else None
    moment = line.ended_at is not None
    return line.kind, line.node, which, line.successor, line.reason, moment, line.life


def _register_of(store: RedisLeaseStore | FakeStore, election: str) -> object:
    return sorted(
        (each.node, each.priority, each.held_for is not None, str(each.info), each.life)
        for each in store.register.candidates(election)
    )


INSTANT = 0.002
AGO = 1.0  # seconds since the end of a leadership that is told of


def _random_request(
    chance: random.Random, election: str, store: LeaseStore, terms: list[int], ranked: bool
) -> Request:
    """The same request for both stores, if each has granted its terms at the same places."""
    holder = chance.choice("abc")
    nonce = f"another life of {holder}" if ranked and chance.random() < 0.2 else None
    attempt = chance.randint(1, 6)
    lease = LONG if ranked else chance.choice([INSTANT, LONG, LONG])
    priority = chance.randint(-1, 2) if ranked else 0
    which, beside = chance.randint(-3, -1), chance.choice([0, 0, 0, -1, 1])
    term = terms[which] + beside if len(terms) >= -which else 0
    kind = chance.random()
    flags = [chance.random() < 0.3 for _ in range(5)]
    others = [other for other in "abcd" if other != holder]
    successor = chance.choice([None, *others])
    info = '{"host":"h"}' if chance.random() < 0.2 else ""
    try:
        record = store.read(election)
    except StoreUnavailable:  # it makes no sense
        record = None
    if kind < 0.6:
        watched = (record.term, record.renewals - flags[4]) if record and flags[0] else None
        return acquire(
            holder,
            attempt,
            election=election,
            nonce=nonce,
            from_damaged=flags[4],
            lease_duration=lease,
            seen_term=term if flags[1] else 0,
            live_term=term if flags[2] else 0,
            watched=watched,
            silent=flags[3],
            from_missing=flags[4],
            priority=priority,
            info=info,
            abstains=ranked and flags[3] and flags[4],
            ended=Ended(term, "lost contact", AGO) if flags[2] and term else None,
        )
    if kind < 0.8:
        return renew(
            holder,
            attempt,
            term,
            election=election,
            nonce=nonce,
            lease_duration=lease,
            priority=priority,
            preempted=flags[0],
            info=info,
        )
    return release(
        holder,
        attempt,
        election=election,
        nonce=nonce,
        successor=successor,
        reservation=lease,
        reason="held" if flags[1] else "resigned",
        leaving=ranked and flags[2],
    )


def _in_words(reply: Reply, terms: list[int], ranked: bool) -> object:
    """``reply`` without clocks: a term is the how-manieth it was, a remainder is its sign."""
    # What a candidate of a short lease says of itself is forgotten soon.
    known = ranked and not isinstance(reply, Released) and reply.info_stored
    namesake = not ranked or isinstance(reply, Released) or reply.namesake
    namesake = namesake.place if isinstance(namesake, Namesake) else namesake
    if isinstance(reply, Granted):
        if reply.term not in terms:
            terms.append(reply.term)
        return "granted", terms.index(reply.term), reply.step_down, known, namesake
    if isinstance(reply, Refused):
        record = reply.record
        return (
            "refused",
            record.holder,
            terms.index(record.term),
            record.state,
            record.remaining > 0,
            record.lease_duration,
            record.renewals,
            record.transitions,
            record.successor,
            reply.held_for is not None,
            known,
            namesake,
        )
    if isinstance(reply, Missing):
        return "missing", reply.damaged, reply.held_for is not None, known, namesake
    return type(reply).__name__


def _but_remaining(record: Record) -> Iterable[object]:
    fields = (name for name in Record.__slots__ if name != "remaining")
    return [getattr(record, name) for name in fields]


def _next_millisecond(store: LeaseStore) -> None:
    moment = time.time()
    wait_until(lambda: time.time() > moment + 0.002, what="two milliseconds")


def _beside(store: LeaseStore, request: pytest.FixtureRequest) -> LeaseStore:
    """Another connection to the same leases."""
    if isinstance(store, FakeStore):
        return store
    make: MakeStore = request.getfixturevalue("make_store")
    keys = store.keys  # type: ignore[attr-defined]
    return make(prefix=keys.prefix)
