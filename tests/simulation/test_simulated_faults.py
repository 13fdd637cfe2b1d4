"""Random faults, seeded: at most one leads, terms grow, and afterwards somebody leads."""

from __future__ import annotations

import os
import random

import pytest

from tests.simulation.schedule import (
    EDGE,
    LEASE,
    WEATHERS,
    Cut,
    Evict,
    Flush,
    Kill,
    LoseReply,
    LoseRequest,
    Node,
    Pause,
    Resign,
    RollBack,
    Schedule,
    SetClock,
    Slow,
    Transfer,
    Weather,
    draw,
)
from tests.simulation.shrinking import shrink, violation_of
from tests.simulation.simulation import ONE_LEADER, Simulation

#: They only compute, however slow the machine is.
pytestmark = pytest.mark.timeout(600)

#: Of each weather; `make simulate` runs as many as one likes.
SCHEDULES = 150
SEED_VARIABLE = "CELERY_LEADER_TEST_SEED"


@pytest.fixture
def first_seed() -> int:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**9))
    print(f"{SEED_VARIABLE}={seed}")
    return seed


@pytest.mark.parametrize("weather", WEATHERS)
def test_never_do_two_lead_at_once_and_never_does_a_term_come_back(
    weather: str, first_seed: int
) -> None:
    elected = accepted = refused = 0
    for seed in range(first_seed, first_seed + SCHEDULES):
        schedule = draw(seed, WEATHERS[weather])
        simulation = Simulation(schedule)
        try:
            simulation.run()
        except AssertionError as exc:
            pytest.fail(f"{exc}\n{simulation.trace[-4000:]}\n{schedule.to_text()}")
        elected += simulation.elections_won
        accepted += simulation.writes_accepted
        refused += simulation.writes_refused
    assert elected > 3 * SCHEDULES, "the faults were to make leadership change"
    assert accepted > 10 * SCHEDULES
    assert refused > SCHEDULES / 4, "some writes were to come too late"


def test_without_faults_somebody_leads_at_once_and_goes_on(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + SCHEDULES):
        drawn = draw(seed, Weather(drift=EDGE, mixed_leases=True))
        equals = tuple(Node(n.rate, n.origin, 0, n.lease, n.starts) for n in drawn.nodes)
        simulation = Simulation(Schedule(seed, equals, (), drawn.server_rate, storm=1.0))
        simulation.run()
        assert simulation.elections_won == 1
        assert simulation.last_change_at < 1.0, "the one elected first leads to the end"


# -- the simulation itself -------------------------------------------------------------


def a_broken_schedule() -> Schedule:
    """Of clocks that run apart further than the margin allows."""
    for seed in range(1000):
        schedule = draw(seed, Weather(drift=3 * EDGE))
        if violation_of(schedule) is not None:
            return schedule
    raise AssertionError("clocks that run far apart were to harm")


def test_clocks_that_run_apart_further_than_the_margin_are_seen_to_harm() -> None:
    violation = violation_of(a_broken_schedule())
    assert violation is not None
    assert violation.promise == ONE_LEADER


def test_a_schedule_runs_the_same_way_every_time() -> None:
    schedule = draw(7, WEATHERS["restarts"])
    traces = []
    for each in (schedule, schedule, Schedule.from_text(schedule.to_text())):
        simulation = Simulation(each)
        simulation.run()
        traces.append(simulation.trace)
    assert traces[0] == traces[1] == traces[2]
    assert traces[0].count("Elected") >= 2


def test_what_breaks_is_made_small_and_still_breaks_the_same_promise() -> None:
    schedule = a_broken_schedule()
    small = shrink(schedule)
    assert len(small.faults) <= 5 < len(schedule.faults)
    replayed = violation_of(Schedule.from_text(small.to_text()))
    assert replayed is not None
    assert replayed.promise == ONE_LEADER


# -- what was found, and is mended --------------------------------------------------------

THREE = (Node(),) * 3


def test_a_bootstrap_delay_counts_from_the_first_look_and_not_from_the_start() -> None:
    """A candidate cut off since its start believed, at its first look, to have waited long."""
    faults = (Kill(60.0, 0, 14.0), Cut(70.0, 0, 15.0), Flush(85.0))
    Simulation(Schedule(2477, (Node(),) * 2, faults, storm=86.0, bootstrap_delay=LEASE)).run()


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(
            53,
            THREE,
            (Cut(93.0, 1, 15.0), Flush(102.0), Flush(118.7), Kill(96.0, 0, 0.0)),
            storm=119.0,
            bootstrap_delay=LEASE,
        ),
        Schedule(
            639,
            THREE,
            (
                Flush(33.0),
                Resign(57.0, 1, None, 6.0),
                Flush(72.0),
                Flush(86.7),
                Cut(67.8, 2, 8.5),
            ),
            storm=87.0,
        ),
        Schedule(
            641,
            (Node(), Node(starts=0.4), Node()),
            (Pause(33.0, 2, 6.0), Flush(40.0), Evict(47.2), Slow(0, 0, 1.0, 0.0)),
            storm=48.0,
            bootstrap_delay=LEASE,
        ),
    ],
    ids=["restarted", "resigned", "paused"],
)
def test_who_waits_for_a_missing_record_waits_anew_when_somebody_is_elected_meanwhile(
    schedule: Schedule,
) -> None:
    """Its wait went on across a leadership it had heard of, whose record was lost as well."""
    Simulation(schedule).run()


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(
            5140,
            (Node(priority=1), Node(rate=1 - EDGE), Node(rate=1.0209547504204364, priority=1)),
            (
                Pause(15.0, 2, 5.0),
                RollBack(36.0, 6.0),
                RollBack(73.0, 0.0),
                Slow(2, 11, 3.0, 3.0),
                LoseReply(2, 17),
            ),
            storm=74.0,
        ),
        Schedule(
            6220,
            (Node(rate=1 + EDGE, priority=1), Node(), Node(rate=1 + EDGE)),
            (
                Cut(15.1, 1, 0.4),
                Cut(15.0, 2, 13.0),
                Transfer(17.0, 0, None),
                RollBack(43.0, 2.0),
                Pause(44.4, 0, 14.3),
                Slow(0, 4, 7.0, 1.0),
                LoseReply(0, 6),
                Slow(1, 0, 0.3, 7.0),
                LoseRequest(1, 5),
            ),
            storm=54.0,
        ),
    ],
    ids=["leader", "follower"],
)
def test_an_old_copy_that_is_renewed_is_not_taken_for_what_was_watched_before(
    schedule: Schedule,
) -> None:
    """It was renewed as often as the record that a follower had watched before the failover."""
    Simulation(schedule).run()


def test_a_leader_that_the_server_s_clock_ran_ahead_of_keeps_its_lease_from_a_higher_priority() -> (
    None
):
    faults = (
        Cut(49.0, 3, 25.0),
        Pause(71.0, 3, 25.0),
        SetClock(102.0, 3600.0),
        Resign(103.0, 3, None, 1.0),
        Slow(3, 2, 14.0, 2.0),
        LoseReply(3, 7),
    )
    nodes = (
        Node(starts=0.31276754309227517),
        Node(starts=0.47670581664431994),
        Node(starts=0.24115638289482855),
        Node(priority=1),
    )
    Simulation(Schedule(3685, nodes, faults, storm=104.0)).run()
