"""Whether what a leader leads for still moves, on a clock that a test sets."""

from __future__ import annotations

import pytest

from celery_leader.core.watchdog import BrokerHeartbeat, Heartbeat


@pytest.fixture
def heartbeat() -> Heartbeat:
    heartbeat = Heartbeat("the loop", 60.0)
    heartbeat.beat(1000.0)
    return heartbeat


def test_what_gives_signs_of_life_does_not_stand(heartbeat: Heartbeat) -> None:
    for moment in range(1000, 2000, 50):
        heartbeat.beat(moment)
        assert not heartbeat.fails(moment + 49)


def test_what_is_silent_for_too_long_stands_once_looked_at_twice(heartbeat: Heartbeat) -> None:
    assert not heartbeat.fails(1059.0)
    assert heartbeat.look_again_at(1059.0) == 1060.0
    assert not heartbeat.fails(1060.0)
    assert not heartbeat.fails(heartbeat.look_again_at(1060.0))
    assert heartbeat.fails(1065.0)


def test_it_moves_again_with_the_next_sign_of_life(heartbeat: Heartbeat) -> None:
    heartbeat.fails(1060.0)
    assert heartbeat.fails(1070.0)
    heartbeat.beat(1071.0)
    assert not heartbeat.fails(1071.0)
    assert heartbeat.look_again_at(1071.0) == 1131.0


def test_what_rests_on_purpose_does_not_stand(heartbeat: Heartbeat) -> None:
    heartbeat.beat(1000.0, rest=300.0)
    assert not heartbeat.fails(1359.0)
    heartbeat.fails(1360.0)
    assert heartbeat.fails(1370.0)


def test_a_good_reason_for_silence_lasts_until_the_next_sign_of_life(heartbeat: Heartbeat) -> None:
    heartbeat.suspend()
    assert not heartbeat.fails(99_000.0)
    heartbeat.beat(100_000.0)
    heartbeat.fails(100_060.0)
    assert heartbeat.fails(100_070.0)


def test_a_process_that_was_paused_is_given_time_to_show_life(heartbeat: Heartbeat) -> None:
    assert not heartbeat.fails(5000.0), "the first look after an hour"
    heartbeat.beat(5001.0)
    assert not heartbeat.fails(5005.0)
    assert not heartbeat.fails(5060.0)


def test_a_second_silence_is_looked_at_twice_as_well(heartbeat: Heartbeat) -> None:
    heartbeat.fails(1060.0)
    heartbeat.beat(1061.0)
    assert not heartbeat.fails(1121.0)
    assert not heartbeat.fails(1122.0)
    assert heartbeat.fails(1127.0)


def test_one_that_has_shown_no_life_yet_does_not_stand() -> None:
    assert not Heartbeat("the loop", 60.0).fails(1e9)


# -- the broker ----------------------------------------------------------------------


@pytest.mark.parametrize("lease", [3.0, 15.0, 25.0])
def test_a_broker_that_is_asked_may_be_silent_for_about_a_lease(lease: float) -> None:
    broker = BrokerHeartbeat(lease)
    assert not broker.fails(1000.0)
    broker.expect(1000.0)
    assert not broker.fails(1000.0 + lease / 2)
    moment = 1000.0
    while not broker.fails(moment):
        moment = broker.look_again_at(moment)
        assert moment <= 1000.0 + 1.1 * lease


def test_who_asks_a_silent_broker_again_does_not_begin_to_count_anew() -> None:
    broker = BrokerHeartbeat(15.0)
    for moment in range(1000, 1020, 2):
        broker.expect(moment)
        broker.fails(moment)
    assert broker.fails(1020.0)


def test_an_answer_of_the_broker_is_enough_until_it_is_asked_again() -> None:
    broker = BrokerHeartbeat(15.0)
    broker.expect(1000.0)
    assert broker.awaited
    broker.suspend()
    assert not broker.awaited
    assert not broker.fails(99_000.0)
    broker.expect(99_000.0)
    assert not broker.fails(99_001.0)
