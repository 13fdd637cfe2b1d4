"""``WallClock``: a process goes by about the same time as Redis, or does not lead."""

from __future__ import annotations

import logging

import pytest

from celery_leader.beat.wall_clock import WallClock

TODAY = 1_790_000_000.0  # by the clock of Redis
HOUR = 3600.0


class Clocks:
    """The clock that is never set, that of Redis, and one of a process."""

    def __init__(self, tolerance: float = 60.0) -> None:
        self.moment = 1_000.0
        self.ahead = 0.0
        self.redis_ahead = 0.0
        self.tested = WallClock(lambda: TODAY + self.moment + self.ahead, tolerance)

    def answered(self, latency: float = 0.002) -> None:
        """Redis answers, half of ``latency`` after it was asked."""
        sent_at, self.moment = self.moment, self.moment + latency
        self.tested.heard(TODAY + self.redis_ahead + sent_at + latency / 2, sent_at, self.moment)

    def fails(self) -> bool:
        return self.tested.fails(self.moment)


def test_a_clock_is_not_doubted_before_redis_has_said_what_time_it_is() -> None:
    clocks = Clocks()
    clocks.ahead = HOUR
    assert not clocks.fails()
    assert not clocks.tested.is_off(clocks.moment)


@pytest.mark.parametrize("ahead", [HOUR, -HOUR, 365 * 24 * HOUR, 61.0, -61.0])
def test_a_clock_that_is_off_fails_and_says_both_times(ahead: float) -> None:
    clocks = Clocks()
    clocks.ahead = ahead
    clocks.answered()
    assert clocks.fails()
    which = "ahead of" if ahead > 0 else "behind"
    assert f" is {abs(ahead):.0f} s {which} that of Redis (" in clocks.tested.trouble(clocks.moment)
    assert "leader_beat_clock_tolerance" in clocks.tested.cure
    assert clocks.tested.level == logging.ERROR


@pytest.mark.parametrize("ahead", [0.0, 59.0, -59.0])
def test_a_clock_within_the_tolerance_holds(ahead: float) -> None:
    clocks = Clocks()
    clocks.ahead = ahead
    clocks.answered()
    assert not clocks.fails()


def test_a_slow_answer_is_no_reason_for_doubt() -> None:
    clocks = Clocks(tolerance=1.0)
    clocks.ahead = 3.0
    clocks.answered(latency=6.0)
    assert not clocks.fails()
    clocks.answered()
    assert clocks.fails()


def test_a_clock_that_is_set_is_noticed_without_an_answer_and_so_is_one_that_is_set_right() -> None:
    clocks = Clocks()
    clocks.answered()
    clocks.moment += HOUR  # Redis is away for long
    assert not clocks.fails()
    clocks.ahead = HOUR
    assert clocks.tested.is_off(clocks.moment)
    assert clocks.fails()
    clocks.ahead = 0.0
    assert not clocks.fails()


def test_a_clock_that_runs_fast_fails_once_it_has_run_ahead() -> None:
    clocks = Clocks()
    clocks.answered()
    for _ in range(59):
        clocks.moment += 10.0
        clocks.ahead += 1.0
        assert not clocks.fails()
    clocks.ahead += 3.0
    assert clocks.fails()


def test_a_clock_at_the_edge_of_its_tolerance_does_not_go_to_and_fro() -> None:
    clocks = Clocks()
    clocks.answered()
    clocks.ahead = 60.5
    assert clocks.fails()
    clocks.ahead = 59.0
    assert clocks.fails()
    clocks.ahead = 50.0
    assert not clocks.fails()


def test_redis_whose_own_clock_is_set_right_is_heard() -> None:
    clocks = Clocks()
    clocks.redis_ahead = HOUR
    clocks.answered()
    assert clocks.fails()
    clocks.redis_ahead = 0.0
    clocks.answered()
    assert not clocks.fails()
