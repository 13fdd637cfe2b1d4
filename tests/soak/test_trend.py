"""The statistics of the soak: a leak is seen among restarts and noise, and noise is none."""

from __future__ import annotations

import random

import pytest

from tests.soak.trend import Series, trend

LIMIT = 0.5  # a minute


def lives(seed: int, per_minute: float, *, count: int, seconds: float) -> list[Series]:
    """Processes that warm up, jump under faults, and perhaps leak."""
    chance = random.Random(seed)
    made: list[Series] = []
    for _ in range(count):
        start, last = chance.uniform(40, 44), chance.uniform(0.7, 1.0) * seconds
        life: list[tuple[float, float]] = []
        age = 0.0
        while age < last:
            warm = 8 * min(1.0, age / 15)
            jump = chance.choice([0, 0, 0, 0, 3]) * chance.random()
            noise = chance.gauss(0, 0.05)
            life.append((age, start + warm + jump + noise + per_minute * age / 60))
            age += 1.0
        made.append(life)
    return made


@pytest.mark.parametrize("seed", range(20))
def test_warming_up_and_jumps_are_no_leak(seed: int) -> None:
    found = trend(lives(seed, 0.0, count=6, seconds=240))
    assert found is not None
    assert not found.exceeds(LIMIT), (seed, found)


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_of_twice_the_limit_is_seen_through_restarts(seed: int) -> None:
    found = trend(lives(seed, 2 * LIMIT, count=6, seconds=240))
    assert found is not None
    assert found.exceeds(LIMIT), (seed, found)


def test_a_leak_in_one_process_of_six_is_seen() -> None:
    found = trend(lives(1, 0.0, count=5, seconds=240) + lives(2, 12.0, count=1, seconds=240))
    assert found is not None
    assert found.exceeds(LIMIT), found


@pytest.mark.parametrize("seed", range(20))
def test_a_count_that_faults_move_for_a_while_is_no_leak(seed: int) -> None:
    chance = random.Random(seed)
    series: list[Series] = []
    for _ in range(3):
        life: list[tuple[float, float]] = []
        while len(life) < 300:
            value, lasts = chance.choice([0, 1, 2, 2, 2, 4]), chance.randint(2, 15)
            life += [(float(len(life) + i), float(value)) for i in range(lasts)]
        series.append(life)
    found = trend(series)
    assert found is not None
    assert not found.exceeds(LIMIT), (seed, found)


def test_processes_that_start_at_different_heights_do_not_make_a_slope() -> None:
    flat = [[(float(age), 40.0 + 5 * i) for age in range(100)] for i in range(5)]
    found = trend(flat)
    assert found is not None
    assert found.per_minute == pytest.approx(0)


def test_lives_too_short_to_tell_say_nothing() -> None:
    assert trend([[(float(age), 1.0) for age in range(15)]]) is None


def test_one_life_can_tell_alone() -> None:
    found = trend(lives(3, 3.0, count=1, seconds=240))
    assert found is not None
    assert found.exceeds(LIMIT)
