"""What a candidate makes of what it sees of another's lease, by its own clock."""

from __future__ import annotations

from typing import Any

import pytest

from celery_leader.core.lease import CLOCK_SLACK, Announcement, Record, State
from celery_leader.core.observed_lease import ObservedLease
from celery_leader.core.timing import Timing

TIMING = Timing(lease_duration=25.0, bootstrap_delay=7.0)
SERVER = 1_000_000.0  # seconds that the server's clock is ahead of ours


@pytest.fixture
def observed() -> ObservedLease:
    observed = ObservedLease(TIMING)
    observed.clock_gained(SERVER, 0.0)
    return observed


def record(**fields: Any) -> Record:
    return Record(
        **{
            "holder": "a",
            "term": 7,
            "state": State.TAKEN,
            "remaining": 10.0,
            "lease_duration": 25.0,
            "renewals": 3,
            "elected_at": 0.0,
            "transitions": 1,
            "successor": None,
            "app": "",
            "cursor": "1-0",
            **fields,
        }
    )


def announcement(kind: str, term: int, cursor: str = "1-0") -> Announcement:
    return Announcement("e", cursor, kind, "a", term, None)


def test_a_lease_has_run_out_only_once_our_own_clock_has_seen_it(observed: ObservedLease) -> None:
    assert observed.watch(record(), 0.0, 0.0) == 10.0
    assert observed.run_out(9.9) is None
    assert observed.run_out(10.0) == (7, 3)


def test_a_renewal_starts_the_watch_anew(observed: ObservedLease) -> None:
    observed.watch(record(), 0.0, 0.0)
    observed.watch(record(renewals=4, remaining=25.0), 9.0, 0.0)
    assert observed.run_out(33.9) is None
    assert observed.run_out(34.0) == (7, 4)


def test_an_old_copy_of_the_record_is_watched_for_a_whole_lease(observed: ObservedLease) -> None:
    observed.watch(record(), 0.0, 0.0)
    assert observed.watch(record(renewals=2, remaining=1.0), 5.0, 0.0) == 30.0


def test_what_the_servers_clock_gained_is_waited_for_and_no_more_than_a_lease(
    observed: ObservedLease,
) -> None:
    assert observed.watch(record(), 0.0, 4.0) == 14.0
    observed.watch(record(renewals=4), 0.0, float("inf"))
    assert observed.run_out(24.9) is None
    assert observed.run_out(25.0) == (7, 4)


def test_a_record_that_never_moves_is_silent_after_a_lease(observed: ObservedLease) -> None:
    observed.watch(record(remaining=9000.0), 0.0, 0.0)
    observed.watch(record(remaining=8990.0), 10.0, 0.0)
    assert not observed.is_silent(24.9)
    assert observed.is_silent(25.0)


def test_a_clock_set_back_may_have_been_set_forward_by_anything(observed: ObservedLease) -> None:
    assert observed.clock_gained(SERVER + 13.0, 10.0) == pytest.approx(3.0)
    assert observed.clock_gained(SERVER + 23.0 - TIMING.margin, 20.0) == 0.0
    assert observed.clock_gained(SERVER, 30.0) == float("inf")


def test_a_record_never_seen_may_be_made_after_the_bootstrap_delay(
    observed: ObservedLease,
) -> None:
    assert observed.found_missing(3.0) == 10.0
    assert not observed.may_make_record(9.9)
    assert observed.may_make_record(10.0)


def test_a_record_that_was_seen_is_missed_for_the_longest_lease(observed: ObservedLease) -> None:
    observed.watch(record(lease_duration=60.0), 0.0, 0.0)
    assert observed.found_missing(1.0) == 61.0


def test_the_wait_begins_anew_after_a_pause(observed: ObservedLease) -> None:
    observed.found_missing(0.0)
    assert observed.may_make_record(14.0)
    assert not observed.may_make_record(14.1), "nobody looked for two waits"
    assert observed.found_missing(14.1) == pytest.approx(21.1)
    observed.begin_wait_anew()
    assert not observed.is_missing
    assert not observed.may_make_record(1000.0)


def test_terms_of_a_clock_that_was_far_ahead_are_forgotten(observed: ObservedLease) -> None:
    possible = int((SERVER + CLOCK_SLACK) * 1e6)
    observed.saw(possible, 25.0)
    observed.forget_impossible_terms(SERVER)
    assert observed.seen_term == possible
    observed.saw(possible + 1, 25.0)
    observed.forget_impossible_terms(SERVER)
    assert observed.seen_term == 0


def test_a_line_that_nobody_can_have_written_yet_is_not_possible(observed: ObservedLease) -> None:
    assert observed.is_possible(announcement("elected", 7), 0.0)
    latest = int((SERVER + CLOCK_SLACK) * 1e6)
    assert not observed.is_possible(announcement("elected", latest + 1), 0.0)
    assert not observed.is_possible(announcement("elected", 7, f"{latest}-0"), 0.0)
    assert ObservedLease(TIMING).is_possible(announcement("elected", latest + 1), 0.0)


def test_a_cursor_of_the_future_is_given_up(observed: ObservedLease) -> None:
    observed.move_cursor("5000-1", 5.0)
    observed.move_cursor("4000-0", 5.0)
    assert observed.cursor == "5000-1"
    observed.cursor = "99999000-0"
    observed.move_cursor("6000-0", 6.0)
    assert observed.cursor == "6000-0"


def test_a_leadership_is_news_once_and_older_lines_are_none(observed: ObservedLease) -> None:
    assert observed.see_leader(record(), 0.0)
    assert not observed.hear_of_leader(announcement("elected", 7), 1.0)
    assert not observed.hear_of_leader(announcement("elected", 6), 1.0)
    assert observed.hear_of_leader(announcement("elected", 8), 1.0)
    assert observed.leader.holder == "a"
    observed.hear_of_leader(announcement("resigned", 8), 2.0)
    assert observed.leader.holder is None


def test_nobody_is_known_to_lead_from_when_the_lease_has_run_out(observed: ObservedLease) -> None:
    observed.see_leader(record(), 0.0)
    observed.watch(record(), 0.0, 0.0)
    observed.see_lease_run_out(9.9)
    assert observed.leader.holder == "a"
    observed.see_lease_run_out(12.0)
    assert observed.leader.holder is None
    assert observed.leader.vacant_seconds(12.0) == pytest.approx(2.0)
