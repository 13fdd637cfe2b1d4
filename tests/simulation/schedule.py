"""What happens in one run of the simulation, as data: it can be printed, replayed and shrunk.

A schedule names every fault. What is left to chance besides (how many milliseconds a
message takes, jitter, which news is heard late) follows from ``Schedule.seed`` and from
what the message is, not from what was drawn before it: a fault that is taken out leaves
everything else as it was.
"""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from typing import Any

from celery_leader.core.timing import Timing

LEASE = 10.0
#: How much faster or slower than true time a clock may run. Two clocks, one at each end,
#: run apart by just the margin: (1 + EDGE) x (1 - 0.05) = 1 - EDGE.
EDGE = 0.05 / 1.95


@dataclass(frozen=True, slots=True)
class Node:
    """One candidate: its clock, its priority and its lease."""

    rate: float = 1.0
    origin: float = 0.0
    priority: int = 0
    lease: float = LEASE
    starts: float = 0.0


@dataclass(frozen=True, slots=True)
class Pause:
    """The process stands still."""

    at: float
    node: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Nothing the node sends arrives, and it hears nothing."""

    at: float
    node: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Kill:
    """The process ends without a word; another starts under its name ``down`` seconds later."""

    at: float
    node: int
    down: float


@dataclass(frozen=True, slots=True)
class Resign:
    """The node gives up what it has, and campaigns again ``away`` seconds later."""

    at: float
    node: int
    successor: int | None
    away: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """The node, if it leads, makes way for ``successor`` and stays a candidate."""

    at: float
    node: int
    successor: int | None


@dataclass(frozen=True, slots=True)
class Ask:
    """Somebody asks whoever leads to step down, to ``successor`` or to anybody."""

    at: float
    successor: int | None


@dataclass(frozen=True, slots=True)
class Hold:
    """The node is kept out of the race, for ``seconds`` or for ever, and let in after ``away``."""

    at: float
    node: int
    seconds: float | None
    away: float


@dataclass(frozen=True, slots=True)
class SetClock:
    """The server's clock is set."""

    at: float
    by: float


@dataclass(frozen=True, slots=True)
class Evict:
    """The record is gone."""

    at: float


@dataclass(frozen=True, slots=True)
class Flush:
    """Everything is gone."""

    at: float


@dataclass(frozen=True, slots=True)
class RollBack:
    """A replica that is at least ``age`` seconds behind is promoted."""

    at: float
    age: float


@dataclass(frozen=True, slots=True)
class LoseRequest:
    """The ``nth`` request of the node does not arrive."""

    node: int
    nth: int


@dataclass(frozen=True, slots=True)
class LoseReply:
    """It is executed, and the answer does not arrive."""

    node: int
    nth: int


@dataclass(frozen=True, slots=True)
class Slow:
    """It takes ``there`` seconds to arrive and ``back`` to be answered; it may be overtaken."""

    node: int
    nth: int
    there: float
    back: float


@dataclass(frozen=True, slots=True)
class Repeat:
    """It is executed a second time ``after`` seconds later."""

    node: int
    nth: int
    after: float


@dataclass(frozen=True, slots=True)
class SlowWrite:
    """What the node writes under its ``nth`` term or renewal arrives ``there`` seconds late."""

    node: int
    nth: int
    there: float


Planned = Pause | Cut | Kill | Resign | Transfer | Ask | Hold | SetClock | Evict | Flush | RollBack
OnMessage = LoseRequest | LoseReply | Slow | Repeat | SlowWrite
Fault = Planned | OnMessage

_KINDS: dict[str, Any] = {
    kind.__name__: kind for union in (Planned, OnMessage) for kind in union.__args__
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run: who takes part, what goes wrong until ``storm``, then calm."""

    seed: int
    nodes: tuple[Node, ...]
    faults: tuple[Fault, ...]
    server_rate: float = 1.0
    storm: float = 120.0
    bootstrap_delay: float = 0.0

    def timing(self, node: int) -> Timing:
        """The durations of that candidate."""
        timing = Timing.of_lease(self.nodes[node].lease)
        return dataclasses.replace(timing, bootstrap_delay=self.bootstrap_delay)

    @property
    def longest_lease(self) -> float:
        """Of any candidate."""
        return max(node.lease for node in self.nodes)

    def to_text(self) -> str:
        """One line of JSON, which ``from_text`` reads."""
        values = dataclasses.asdict(self)
        values["faults"] = [
            {"fault": type(fault).__name__, **dataclasses.asdict(fault)} for fault in self.faults
        ]
        return json.dumps(values)

    @classmethod
    def from_text(cls, text: str) -> Schedule:
        """What ``to_text`` wrote."""
        values = json.loads(text)
        values["nodes"] = tuple(Node(**node) for node in values["nodes"])
        values["faults"] = tuple(_KINDS[fault.pop("fault")](**fault) for fault in values["faults"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Weather:
    """What may happen in one kind of schedule.

    Not everything at once: ``election.py`` says what it does not guard. A *fresh*
    candidate is not safe where the server's clock is set forward, nor where data was
    lost, unless ``bootstrap_delay`` is a lease, and never where an old replica was
    promoted.

    Attributes:
        restarts: processes are killed, and new ones started under the same name.
        clock_back: the server's clock is set back.
        clock_forward: the server's clock is set forward.
        lost: the record or the whole database is gone.
        rolled_back: a replica that lags is promoted.
        drift: how much faster or slower than true time clocks may run.
        mixed_leases: candidates are configured with different leases.
        bootstrap_delay: see ``Timing``.
    """

    restarts: bool = False
    clock_back: bool = False
    clock_forward: bool = False
    lost: bool = False
    rolled_back: bool = False
    drift: float = 0.0
    mixed_leases: bool = False
    bootstrap_delay: float = 0.0


WEATHERS = {
    "restarts": Weather(restarts=True, drift=EDGE, mixed_leases=True),
    "clock_steps": Weather(clock_back=True, clock_forward=True),
    "clock_set_back": Weather(restarts=True, clock_back=True),
    "data_loss": Weather(lost=True, drift=EDGE),
    "old_replica": Weather(lost=True, rolled_back=True, drift=EDGE),
    "bootstrap_delay": Weather(restarts=True, lost=True, drift=EDGE, bootstrap_delay=LEASE),
}


def of_seed(seed: int) -> Schedule:
    """The schedule of ``seed``: seeds take turns at the weathers."""
    return draw(seed, WEATHERS[weather_of(seed)])


def weather_of(seed: int) -> str:
    """Which of ``WEATHERS`` the schedule of ``seed`` has."""
    return list(WEATHERS)[seed % len(WEATHERS)]


def draw(seed: int, weather: Weather, *, storm: float = 120.0) -> Schedule:
    """A schedule of that weather; the same seed draws the same."""
    chance = random.Random(seed)
    count = chance.choice([2, 3, 3, 3, 4])
    rates = [1.0, 1.0 - weather.drift, 1.0 + weather.drift]
    leases = [LEASE, LEASE, LEASE / 2, 2 * LEASE] if weather.mixed_leases else [LEASE]
    nodes = tuple(
        Node(
            rate=chance.choice([*rates, chance.uniform(rates[1], rates[2])]),
            origin=chance.uniform(0, 1e5),
            priority=chance.choice([0, 0, 1]),
            lease=chance.choice(leases),
            starts=chance.uniform(0, 0.5),
        )
        for _ in range(count)
    )
    return Schedule(
        seed=seed,
        nodes=nodes,
        faults=(
            *_planned(chance, weather, count, storm),
            *(fault for node in range(count) for fault in _on_messages(chance, node)),
        ),
        server_rate=chance.choice(rates),
        storm=storm,
        bootstrap_delay=weather.bootstrap_delay,
    )


def _planned(chance: random.Random, weather: Weather, count: int, storm: float) -> list[Fault]:
    kinds: list[type] = [Pause, Pause, Cut, Cut, Resign, Transfer, Ask, Hold]
    kinds += [Kill, Kill] * weather.restarts
    kinds += [SetClock] * (weather.clock_back or weather.clock_forward)
    faults: list[Fault] = []
    # Everybody has looked once before the first of them.
    moment, lost_at = weather.bootstrap_delay + 1.5 * LEASE, 0.0
    while moment < storm:
        faults.append(_one(chance, chance.choice(kinds), weather, count, moment))
        if (weather.lost or weather.rolled_back) and moment - lost_at > 3 * LEASE:
            lost_at = moment + chance.uniform(0, LEASE)
            losses = [Evict(lost_at), Flush(lost_at)] * weather.lost
            losses += [RollBack(lost_at, chance.expovariate(1 / LEASE))] * 4 * weather.rolled_back
            faults.append(chance.choice(losses))
            if weather.lost and chance.random() < 0.4:
                again = lost_at + chance.uniform(0, 2 * LEASE)
                faults.append(chance.choice([Evict(again), Flush(again)]))
        moment += chance.expovariate(1 / 5.0)
    return faults


def _one(chance: random.Random, kind: type, weather: Weather, count: int, moment: float) -> Planned:
    node, seconds = chance.randrange(count), chance.expovariate(1 / LEASE)
    if kind is Pause:
        return Pause(moment, node, seconds)
    if kind is Cut:
        return Cut(moment, node, seconds)
    if kind is Kill:
        return Kill(moment, node, chance.uniform(0.01, 15))
    successor = chance.choice([None, chance.randrange(count)])
    if kind is Resign:
        return Resign(moment, node, successor, chance.uniform(0, 8))
    if kind is Transfer:
        return Transfer(moment, node, successor)
    if kind is Ask:
        return Ask(moment, successor)
    if kind is Hold:
        ends = chance.choice([None, chance.uniform(0, 3 * LEASE)])
        return Hold(moment, node, ends, chance.uniform(0, 4 * LEASE))
    by = chance.choice([chance.uniform(0, 2), chance.uniform(0, 3 * LEASE), 3600.0])
    signs = [-1] * weather.clock_back + [1] * weather.clock_forward
    return SetClock(moment, by * chance.choice(signs))


def _on_messages(chance: random.Random, node: int) -> list[OnMessage]:
    faults: list[OnMessage] = []
    timeout = Timing.of_lease(LEASE).operation_timeout
    for nth in range(60):
        luck = chance.random()
        if luck < 0.03:
            faults.append(LoseRequest(node, nth))
        elif luck < 0.06:
            faults.append(LoseReply(node, nth))
        elif luck < 0.16:
            longest = chance.choice([timeout, LEASE])
            there, back = (min(chance.expovariate(2 / longest), 3 * longest) for _ in range(2))
            faults.append(Slow(node, nth, there, back))
        if chance.random() < 0.03:
            faults.append(Repeat(node, nth, chance.expovariate(1 / LEASE)))
        if chance.random() < 0.2:
            faults.append(SlowWrite(node, nth, chance.expovariate(1 / LEASE)))
    return faults
