"""Whether what a leader leads for still moves, on a clock that a test sets."""

from __future__ import annotations

import pytest

from celery_leader.core.watchdog import BrokerPulse, Pulse


@pytest.fixture
def pulse() -> Pulse:
    pulse = Pulse("the loop", 60.0)
    pulse.beat(1000.0)
    return pulse


def test_what_gives_signs_of_life_does_not_stand(pulse: Pulse) -> None:
    for moment in range(1000, 2000, 50):
        pulse.beat(moment)
        assert not pulse.fails(moment + 49)


def test_what_is_silent_for_too_long_stands_once_looked_at_twice(pulse: Pulse) -> None:
    assert not pulse.fails(1059.0)
    assert pulse.look_again_at(1059.0) == 1060.0
    assert not pulse.fails(1060.0)
    assert not pulse.fails(pulse.look_again_at(1060.0))
    assert pulse.fails(1065.0)


def test_it_moves_again_with_the_next_sign_of_life(pulse: Pulse) -> None:
    pulse.fails(1060.0)
    assert pulse.fails(1070.0)
    pulse.beat(1071.0)
    assert not pulse.fails(1071.0)
    assert pulse.look_again_at(1071.0) == 1131.0


def test_what_rests_on_purpose_does_not_stand(pulse: Pulse) -> None:
    pulse.beat(1000.0, rest=300.0)
    assert not pulse.fails(1359.0)
    pulse.fails(1360.0)
    assert pulse.fails(1370.0)


def test_a_good_reason_for_silence_lasts_until_the_next_sign_of_life(pulse: Pulse) -> None:
    pulse.suspend()
    assert not pulse.fails(99_000.0)
    pulse.beat(100_000.0)
    pulse.fails(100_060.0)
    assert pulse.fails(100_070.0)


def test_a_process_that_was_paused_is_given_time_to_show_life(pulse: Pulse) -> None:
    assert not pulse.fails(5000.0), "the first look after an hour"
    pulse.beat(5001.0)
    assert not pulse.fails(5005.0)
    assert not pulse.fails(5060.0)


def test_a_second_silence_is_looked_at_twice_as_well(pulse: Pulse) -> None:
    pulse.fails(1060.0)
    pulse.beat(1061.0)
    assert not pulse.fails(1121.0)
    assert not pulse.fails(1122.0)
    assert pulse.fails(1127.0)


def test_one_that_has_shown_no_life_yet_does_not_stand() -> None:
    assert not Pulse("the loop", 60.0).fails(1e9)


# -- the broker ----------------------------------------------------------------------


@pytest.mark.parametrize("lease", [3.0, 15.0, 25.0])
def test_a_broker_that_is_asked_may_be_silent_for_about_a_lease(lease: float) -> None:
    broker = BrokerPulse(lease)
    assert not broker.fails(1000.0)
    broker.expect(1000.0)
    assert not broker.fails(1000.0 + lease / 2)
    moment = 1000.0
    while not broker.fails(moment):
        moment = broker.look_again_at(moment)
        assert moment <= 1000.0 + 1.1 * lease


def test_who_asks_a_silent_broker_again_does_not_begin_to_count_anew() -> None:
    broker = BrokerPulse(15.0)
    for moment in range(1000, 1020, 2):
        broker.expect(moment)
        broker.fails(moment)
    assert broker.fails(1020.0)


def test_an_answer_of_the_broker_is_enough_until_it_is_asked_again() -> None:
    broker = BrokerPulse(15.0)
    broker.expect(1000.0)
    assert broker.awaited
    broker.suspend()
    assert not broker.awaited
    assert not broker.fails(99_000.0)
    broker.expect(99_000.0)
    assert not broker.fails(99_001.0)
