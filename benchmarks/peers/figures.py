"""All figures of one run, as the page and the plot need them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.faults import Result
from benchmarks.peers.growth import Load
from benchmarks.peers.idle import Idle
from benchmarks.peers.scale import Scale


@dataclass(frozen=True, slots=True)
class Rates:
    """Dispatches a second of one contender, by number of entries that are due at once."""

    name: str
    by_size: dict[int, float]


@dataclass(frozen=True, slots=True)
class Questions:
    """Nanoseconds that "do I lead?" takes."""

    is_leader: float
    lock_owned: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run has measured."""

    when: str
    versions: str
    repeats: str
    results: list[Result]
    rates: list[Rates]
    idle: list[Idle]
    loads: list[Load]
    questions: Questions
    scale: Scale
