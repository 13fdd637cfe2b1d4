"""Random faults, seeded: at most one leads, terms grow, and afterwards somebody leads."""

from __future__ import annotations

import os
import random

import pytest

from tests.simulation.simulation import WEATHERS, Simulation, Weather

SCHEDULES = 100
SEED_VARIABLE = "CELERY_LEADER_TEST_SEED"


@pytest.mark.parametrize("weather", WEATHERS, ids=["restarts", "clock_steps", "data_loss"])
def test_never_do_two_lead_at_once_and_never_does_a_term_come_back(weather: Weather) -> None:
    first = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**9))
    print(f"{SEED_VARIABLE}={first}")
    elected = 0
    for seed in range(first, first + SCHEDULES):
        simulation = Simulation(seed, weather)
        simulation.run()
        elected += simulation.elections_won
    assert elected > 2 * SCHEDULES, "the faults were to make leadership change"


@pytest.mark.parametrize("seed", [1554, 2838, 500007])
def test_a_leader_that_the_server_s_clock_ran_ahead_of_keeps_its_lease_from_a_higher_priority(
    seed: int,
) -> None:
    Simulation(seed, Weather(clock_steps=True)).run()
