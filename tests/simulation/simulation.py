"""A discrete-event simulation of one election: everything that can go wrong, seeded.

Three candidates with clocks of their own speed over one ``FakeStore``. Requests and
replies are delayed, lost and doubled; processes are paused, killed and restarted;
links are cut. After every event: nobody leads beside somebody else, and every term is
higher than the one before. After the storm: somebody leads.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from celery_leader.election import Elected, Election, Outranked, Wait, cursor_order
from celery_leader.lease import Release, Reply, Request, Timing
from tests.fake_store import FakeStore

NAME = "beat"
TIMING = Timing.of_lease(10.0)


@dataclass(frozen=True, slots=True)
class Weather:
    """What may happen in one schedule.

    Attributes:
        restarts: processes are killed, and new ones started under the same name.
        clock_steps: the server's clock is set forward and back.
        data_loss: Redis is restarted and has lost the record, and with it what was
            under way to it: a first acquire that arrives later still would be a fresh
            candidate's.
        drift: how much faster or slower than real time a candidate's clock may run.
    """

    restarts: bool = False
    clock_steps: bool = False
    data_loss: bool = False
    drift: float = 0.0


# Not everything at once: a *fresh* candidate is documented not to be safe against lost
# data or a clock set forward, so these come without restarts.
WEATHERS = (
    Weather(restarts=True, drift=0.02),
    Weather(clock_steps=True),
    Weather(data_loss=True, drift=0.02),
)


class Violation(AssertionError):
    """Something promised did not hold."""


class Actor:
    """One candidate's process: its clock, its life, and what it waits for."""

    def __init__(self, name: str, priority: int, rate: float, origin: float) -> None:
        self.name = name
        self.priority = priority
        self.rate = rate
        self.origin = origin
        self.life = 0
        self.alive = True
        self.cut_off = False
        self.paused_until = 0.0
        self.clock_steps_seen = 0
        self.busy = False
        self.plan = 0
        self.election: Election

    def local(self, moment: float) -> float:
        """This candidate's clock at ``moment``."""
        return self.origin + self.rate * moment

    def real(self, local: float) -> float:
        """When this candidate's clock says ``local``."""
        return (local - self.origin) / self.rate


class Simulation:
    """One schedule: ``Simulation(seed, weather).run()`` raises ``Violation`` or returns."""

    def __init__(self, seed: int, weather: Weather, *, storm: float = 150.0) -> None:
        self.seed = seed
        self.weather = weather
        self.chance = random.Random(seed)
        self.now = 0.0
        self.storm = storm
        self.server_ahead = 1_700_000_000.0
        self.store = FakeStore(lambda: self.now + self.server_ahead)
        self.highest_term = 0
        self.elections_won = 0
        self.trace: list[str] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._clock_steps = 0
        self._losses = 0
        self.actors = [
            Actor(
                f"node{i}",
                self.chance.choice([0, 0, 1]),
                1.0 + self.chance.uniform(-weather.drift, weather.drift),
                self.chance.uniform(0, 1e5),
            )
            for i in range(3)
        ]

    # -- the run ------------------------------------------------------------------

    def run(self) -> None:
        """Storm, then calm; checks all the way."""
        for actor in self.actors:
            self._at(self.chance.uniform(0, 0.5), self._birth(actor))
        self._plan_faults()
        calm = 5 * TIMING.lease_duration
        self._at(self.storm, self._calm_down)
        end = self.storm + calm
        while self._heap and self._heap[0][0] <= end:
            self.now, _, event = heapq.heappop(self._heap)
            event()
            self._check_one_leader()
        self.now = end
        if len(self._leaders()) != 1:
            self._fail(f"{calm:g} s after the last fault {self._leaders()} lead")

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(moment, self.now), self._count, event))

    def _note(self, text: str) -> None:
        self.trace.append(f"{self.now:9.3f} {text}")

    def _fail(self, what: str) -> None:
        tail = "\n".join(self.trace[-40:])
        raise Violation(f"seed {self.seed}, {self.weather}: {what}\n{tail}")

    # -- what must hold -------------------------------------------------------------

    def _leaders(self) -> list[str]:
        return [
            actor.name
            for actor in self.actors
            if actor.alive and actor.election.term(actor.local(self.now)) is not None
        ]

    def _check_one_leader(self) -> None:
        if len(self._leaders()) > 1:
            self._fail(f"{self._leaders()} lead at once")

    def _take_changes(self, actor: Actor) -> None:
        for change in actor.election.take_changes():
            self._note(f"{actor.name}: {change}")
            if isinstance(change, Outranked):
                self._step_down(actor, change.superior)
            if not isinstance(change, Elected):
                continue
            self.elections_won += 1
            if change.term <= self.highest_term:
                self._fail(f"term {change.term} after {self.highest_term}")
            self.highest_term = change.term

    # -- candidates -------------------------------------------------------------------

    def _birth(self, actor: Actor) -> Callable[[], None]:
        def born() -> None:
            actor.life += 1
            actor.alive, actor.busy, actor.paused_until = True, False, 0.0
            actor.election = Election(
                NAME,
                holder=actor.name,
                nonce=f"{actor.name}/{actor.life}",
                timing=TIMING,
                priority=actor.priority,
                preempt=True,
                chance=random.Random(self.chance.random()),
            )
            actor.election.campaign(actor.local(self.now))
            self._note(f"{actor.name}: starts")
            self._step(actor)

        actor.alive = False
        return born

    def _living(self, actor: Actor, event: Callable[[], None]) -> Callable[[], None]:
        """``event`` in this life of ``actor`` only, and not while it is paused."""
        life = actor.life

        def guarded() -> None:
            if not actor.alive or actor.life != life:
                return
            if self.now < actor.paused_until:
                self._at(actor.paused_until, guarded)
                return
            event()

        return guarded

    def _step(self, actor: Actor) -> None:
        if actor.busy:
            return
        action = actor.election.next_action(actor.local(self.now))
        self._take_changes(actor)
        actor.plan += 1
        if not isinstance(action, Wait):
            self._send(actor, action)
        elif action.until is not None:
            plan = actor.plan

            def wake() -> None:
                if actor.plan == plan:
                    self._step(actor)

            # A hair later, so that rounding does not wake it before its time.
            self._at(actor.real(action.until) + 1e-6, self._living(actor, wake))

    def _send(self, actor: Actor, request: Request) -> None:
        actor.busy = True
        sent_at = actor.local(self.now)
        timeout = self.now + TIMING.operation_timeout
        there, back = self._delay(), self._delay()
        stormy = self.now < self.storm
        if actor.cut_off or (stormy and self.chance.random() < 0.03):
            self._note(f"{actor.name}: {_short(request)} is lost")
            self._at(timeout, self._living(actor, lambda: self._unanswered(actor, request)))
            return
        heard = self.now + there + back <= timeout
        if stormy and self.chance.random() < 0.04:
            heard = False

        answers: list[tuple[Reply, int]] = []

        def answered() -> None:
            reply, steps = answers.pop()
            if not isinstance(request, Release):
                actor.clock_steps_seen = steps
            self._answered(actor, request, reply, sent_at)

        answered_in_this_life = self._living(actor, answered)
        unanswered_in_this_life = self._living(actor, lambda: self._unanswered(actor, request))
        losses = self._losses

        def execute() -> None:
            if losses < self._losses:
                self._note(f"{actor.name}: {_short(request)} is lost with the data")
                if heard:
                    self._at(timeout, unanswered_in_this_life)
                return
            answers.append((self._execute(actor, request), self._clock_steps))
            if heard:
                self._at(self.now + back, answered_in_this_life)

        self._at(self.now + there, execute)
        if not heard:
            self._note(f"{actor.name}: {_short(request)} will not be answered")
            self._at(timeout, unanswered_in_this_life)
        if stormy and self.chance.random() < 0.03:
            late = self.now + there + self.chance.expovariate(1 / TIMING.lease_duration)
            self._at(late, lambda: self._execute_again(actor, request, losses))

    def _delay(self) -> float:
        if self.now >= self.storm or self.chance.random() < 0.8:
            return self.chance.uniform(0.0001, 0.02)
        if self.chance.random() < 0.8:
            return self.chance.uniform(0.02, TIMING.operation_timeout)
        return self.chance.expovariate(1 / TIMING.lease_duration)

    def _execute(self, actor: Actor, request: Request) -> Reply:
        reply = self.store.answer(request)
        self._note(f"{actor.name}: {_short(request)} -> {type(reply).__name__}")
        for other in self.actors:
            if self.chance.random() < 0.8:
                self._at(self.now + self._delay(), self._living(other, self._hearing(other)))
        return reply

    def _execute_again(self, actor: Actor, request: Request, losses: int) -> None:
        if losses < self._losses:
            return
        reply = self.store.answer(request)
        self._note(f"{actor.name}: {_short(request)} again -> {type(reply).__name__}")

    def _answered(self, actor: Actor, request: Request, reply: Reply, sent_at: float) -> None:
        actor.busy = False
        actor.election.replied(request, reply, sent_at=sent_at, now=actor.local(self.now))
        self._take_changes(actor)
        self._step(actor)

    def _unanswered(self, actor: Actor, request: Request) -> None:
        actor.busy = False
        actor.election.unanswered(request, actor.local(self.now))
        self._take_changes(actor)
        self._step(actor)

    def _hearing(self, actor: Actor) -> Callable[[], None]:
        def hear() -> None:
            local, election = actor.local(self.now), actor.election
            if actor.busy or actor.cut_off or not election.campaigning or election.term(local):
                return
            for line in self.store.news({NAME: election.cursor}):
                if cursor_order(line.cursor) > cursor_order(election.cursor):
                    election.heard(line, local)
            self._step(actor)

        return hear

    # -- faults -----------------------------------------------------------------------

    def _plan_faults(self) -> None:
        faults = [self._pause, self._cut, self._resign]
        if self.weather.restarts:
            faults += [self._kill]
        if self.weather.clock_steps:
            faults += [self._step_clock]
        # Everybody has looked once before the first of them.
        moment = 3 * TIMING.lease_duration
        lost_at = -1e9
        while moment < self.storm:
            fault = self.chance.choice(faults)
            self._at(moment, fault)
            if self.weather.data_loss and moment - lost_at > 6 * TIMING.lease_duration:
                lost_at = moment + self.chance.uniform(0, TIMING.lease_duration)
                self._at(lost_at, self._lose_data)
            moment += self.chance.expovariate(1 / 6.0)

    def _pause(self) -> None:
        actor = self.chance.choice(self.actors)
        seconds = self.chance.expovariate(1 / TIMING.lease_duration)
        actor.paused_until = self.now + seconds
        self._note(f"{actor.name}: paused for {seconds:.3f} s")

    def _cut(self) -> None:
        actor = self.chance.choice(self.actors)
        seconds = self.chance.expovariate(1 / TIMING.lease_duration)
        actor.cut_off = True
        self._note(f"{actor.name}: cut off for {seconds:.3f} s")
        self._at(self.now + seconds, lambda: self._mend(actor))

    def _mend(self, actor: Actor) -> None:
        actor.cut_off = False

    def _resign(self) -> None:
        actor = self.chance.choice(self.actors)
        if not actor.alive or actor.busy or self.now < actor.paused_until:
            return
        successor = self.chance.choice([None, None, self.chance.choice(self.actors).name])
        self._note(f"{actor.name}: resigns for {successor}")
        actor.election.resign(actor.local(self.now), successor)
        self._take_changes(actor)
        self._step(actor)
        self._at(self.now + self.chance.uniform(0, 8), self._living(actor, self._stand(actor)))

    def _step_down(self, actor: Actor, successor: str) -> None:
        """What a leader does that is pre-empted, once it has the time."""

        def step_down() -> None:
            if not actor.busy:
                actor.election.step_down(actor.local(self.now), successor)
                self._take_changes(actor)
                self._step(actor)

        self._at(self.now + self.chance.uniform(0, 3), self._living(actor, step_down))

    def _stand(self, actor: Actor) -> Callable[[], None]:
        def stand() -> None:
            actor.election.campaign(actor.local(self.now))
            self._step(actor)

        return stand

    def _kill(self) -> None:
        actor = self.chance.choice(self.actors)
        if not actor.alive:
            return
        self._note(f"{actor.name}: killed")
        actor.alive = False
        self._at(self.now + self.chance.uniform(0.1, 15), self._birth(actor))

    def _step_clock(self) -> None:
        if any(actor.clock_steps_seen < self._clock_steps for actor in self.actors):
            return  # two steps between two looks of a candidate are documented not to be safe
        self._clock_steps += 1
        step = self.chance.choice([-1, 1]) * self.chance.choice(
            [self.chance.uniform(0, 2), self.chance.uniform(0, 30), 3600]
        )
        self.server_ahead += step
        self._note(f"the server's clock is set by {step:.3f} s")

    def _lose_data(self) -> None:
        self._note("the record is lost")
        self._losses += 1
        self.store.drop(NAME)

    def _calm_down(self) -> None:
        self._note("the storm is over")
        for actor in self.actors:
            actor.cut_off = False
            actor.paused_until = min(actor.paused_until, self.now)
            # Lost news is made up for by the timers.
            if actor.alive and not actor.election.campaigning:
                actor.election.campaign(actor.local(self.now))
                self._step(actor)


def _short(request: Request) -> str:
    return f"{type(request).__name__}#{request.attempt}"
