"""Beats of several versions that lead in turn: each tick once, when it is due, and none forgotten."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.simulation.beats import World
from tests.simulation.test_simulated_faults import SEED_VARIABLE
from tests.simulation.ticks import Broken

#: They only compute, however slow the machine is.
pytestmark = pytest.mark.timeout(600)

#: The same in each run: the judge allows what is ambiguous, and could still be wrong about a world
#: that nobody has seen. `python -m tests.simulation.beats --worlds N` looks at others.
FIRST, WORLDS, PARTS = 1_000, 300, 3


def run(seed: int) -> World:
    """Live through the world of this seed."""
    world = World(seed)
    try:
        world.run_all()
    except Broken as exc:
        pytest.fail(f"{exc}\nto see it: python -m tests.simulation.beats --seed {seed}")
    return world


@pytest.mark.parametrize("part", range(PARTS))
def test_each_tick_is_sent_once_as_it_was_due_whatever_version_leads(part: int) -> None:
    worlds = WORLDS // PARTS
    first = int(os.environ.get(SEED_VARIABLE) or FIRST) + part * worlds
    print(f"{SEED_VARIABLE}={first}")
    happened: Counter[str] = Counter()
    dispatched = 0
    for seed in range(first, first + worlds):
        world = run(seed)
        happened.update(world.counts)
        dispatched += world.judge.dispatched
    assert dispatched > 10 * worlds
    for what in ("elections", "restarts", "paused", "lost", "late", "Redis lost"):
        assert happened[what] > worlds / 10, f"{what} was to happen more often"


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(53, id="a crontab is taken up in an hour that clocks repeat"),
        pytest.param(132, id="a crontab runs late in an hour that clocks repeat"),
        pytest.param(33, id="Redis is slow to say whether a tick was sent"),
        pytest.param(27, id="a relative interval is caught up with in a zone of half an hour"),
    ],
)
def test_what_broke_a_promise_once_does_not_again(seed: int) -> None:
    run(seed)


def test_a_world_goes_the_same_way_every_time() -> None:
    assert run(7).judge.entries.keys() == run(7).judge.entries.keys()
    assert run(7).counts == run(7).counts
