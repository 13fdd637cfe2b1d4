"""A discrete-event simulation of one election: everything that can go wrong.

The candidates are shipped ``Election`` objects and nothing else; each has a clock of its
own speed, and so has the server, which is a ``FakeStore``. ``schedule.py`` says what goes
wrong. After every event: nobody leads beside somebody else, every term is higher than the
one before, and what was written in the name of an older term was refused. After the
storm: somebody leads soon, and goes on.
"""

from __future__ import annotations

import contextlib
import heapq
import random
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial

from celery_leader.core.election import Election, Wait
from celery_leader.core.events import Elected, StepDownRequested
from celery_leader.core.lease import (
    Acquire,
    Missing,
    Refused,
    Release,
    Reply,
    Request,
    cursor_order,
)
from celery_leader.core.requester import Requester
from celery_leader.errors import LeaderError
from tests.simulation.schedule import (
    LEASE,
    Ask,
    Cut,
    Evict,
    Fault,
    Flush,
    Hold,
    Kill,
    LoseReply,
    LoseRequest,
    OnMessage,
    Pause,
    Repeat,
    Resign,
    RollBack,
    Schedule,
    SetClock,
    Slow,
    SlowWrite,
    Transfer,
)
from tests.support.fake_store import FakeStore, Row

NAME = "beat"
#: Leases after the storm until somebody leads, and until that is the one who stays.
#: Of one candidate within one lease.
MOST_REQUESTS = 30
ELECTED_WITHIN, SETTLED_WITHIN, CALM = 2.0, 5.0, 6.0

_State = tuple[int, int]


class Violation(AssertionError):
    """Something promised did not hold; ``promise`` says which."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise


ONE_LEADER = "at most one leads"
TERMS_GROW = "terms grow"
FENCED = "nothing is written in the name of an older term"
NO_RUSH = "nobody asks all the time"
SOON = "somebody leads soon after the last fault, and goes on"


class Actor:
    """One candidate's process: its clock, its life, and what it waits for."""

    def __init__(self, number: int, rate: float, origin: float) -> None:
        self.number = number
        self.name = f"node{number}"
        self.rate = rate
        self.origin = origin
        self.life = 0
        self.alive = False
        self.cut_off = False
        self.paused_until = 0.0
        self.clock_steps_seen = 0
        self.state_seen: _State = (0, 0)
        self.found_missing = False
        self.busy = False
        self.plan = 0
        self.requests = 0
        self.sent: deque[float] = deque(maxlen=MOST_REQUESTS)
        self.writes = 0
        self.orders: list[Callable[[float], None]] = []
        self.election: Election

    def local(self, moment: float) -> float:
        """This candidate's clock at ``moment``."""
        return self.origin + self.rate * moment

    def real(self, local: float) -> float:
        """When this candidate's clock says ``local``."""
        return (local - self.origin) / self.rate


class Simulation:
    """One run: ``Simulation(schedule).run()`` raises ``Violation`` or returns."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.now = 0.0
        self.server_ahead = 1_700_000_000.0
        self.store = FakeStore(lambda: self.server_ahead + schedule.server_rate * self.now)
        self.highest_term = 0
        self.highest_written = 0
        self.elections_won = 0
        self.writes_accepted = 0
        self.writes_refused = 0
        self.first_elected_after_storm: float | None = None
        self.last_change_at = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._clock_steps = 0
        self._losses = 0
        self._failovers = 0
        self._rolled_back = False
        self._past: list[tuple[float, Row]] = []
        self._said: list[tuple[float, str, tuple[object, ...]]] = []
        self._on_messages: dict[tuple[int, int], list[OnMessage]] = defaultdict(list)
        self.actors = [Actor(i, node.rate, node.origin) for i, node in enumerate(schedule.nodes)]

    # -- the run ------------------------------------------------------------------

    def run(self) -> None:
        """Storm, then calm; checks all the way."""
        storm, lease = self.schedule.storm, self.schedule.longest_lease
        for actor, node in zip(self.actors, self.schedule.nodes, strict=True):
            self._at(node.starts, partial(self._birth, actor))
        for fault in self.schedule.faults:
            if isinstance(fault, OnMessage):
                self._on_messages[fault.node, fault.nth].append(fault)
            elif fault.at < storm:
                self._at(fault.at, partial(self._strike, fault))
        self._at(storm, self._calm_down)
        end = storm + CALM * lease
        while self._heap and self._heap[0][0] <= end:
            self.now, _, event = heapq.heappop(self._heap)
            event()
            self._check_one_leader()
        self.now = end
        self._check_leads_and_stays()

    @property
    def trace(self) -> str:
        """What happened, one line each."""
        return "\n".join(f"{at:9.3f} {text % args}" for at, text, args in self._said)

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(moment, self.now), self._count, event))

    def _note(self, text: str, *args: object) -> None:
        self._said.append((self.now, text, args))

    def _fail(self, promise: str, what: str) -> None:
        self._note("%s", what)
        raise Violation(promise, what)

    def _chance(self, *what: int) -> random.Random:
        """Chance for one thing, whatever else happens."""
        number = self.schedule.seed
        for each in what:
            number = number * 1_000_003 + each
        return random.Random(number)

    # -- what must hold -------------------------------------------------------------

    def _leaders(self) -> list[str]:
        return [
            actor.name
            for actor in self.actors
            if actor.alive and actor.election.term(actor.local(self.now)) is not None
        ]

    def _check_one_leader(self) -> None:
        leaders = self._leaders()
        if len(leaders) > 1:
            self._fail(ONE_LEADER, f"{leaders} lead at once")
        if leaders and self.now > self.schedule.storm and self.first_elected_after_storm is None:
            self.first_elected_after_storm = self.now

    def _check_leads_and_stays(self) -> None:
        storm, lease = self.schedule.storm, self.schedule.longest_lease
        if len(self._leaders()) != 1:
            self._fail(SOON, f"{CALM * lease:g} s after the last fault {self._leaders()} lead")
        elected = self.first_elected_after_storm
        if elected is None or elected - storm > ELECTED_WITHIN * lease:
            self._fail(SOON, f"nobody led for {ELECTED_WITHIN} leases after the last fault")
        if self.last_change_at - storm > SETTLED_WITHIN * lease:
            self._fail(SOON, f"leadership changed {SETTLED_WITHIN} leases after the last fault")

    def _take_changes(self, actor: Actor) -> None:
        for change in actor.election.take_changes():
            self._note("%s: %s", actor.name, change)
            self.last_change_at = self.now
            if isinstance(change, StepDownRequested):
                self._at(
                    self.now + self._chance(actor.number, actor.requests, 3).uniform(0, 3),
                    self._living(actor, partial(self._make_way, actor, change)),
                )
            if not isinstance(change, Elected):
                continue
            self.elections_won += 1
            if change.term <= self.highest_term:
                self._fail(TERMS_GROW, f"term {change.term} after {self.highest_term}")
            self.highest_term = change.term

    # -- candidates -------------------------------------------------------------------

    def _birth(self, actor: Actor) -> None:
        number = actor.number
        actor.life += 1
        actor.alive, actor.busy, actor.paused_until = True, False, 0.0
        actor.orders, actor.state_seen, actor.found_missing = [], (0, 0), False
        actor.election = Election(
            Requester(
                NAME,
                holder=actor.name,
                nonce=f"{actor.name}/{actor.life}",
                timing=self.schedule.timing(number),
                priority=self.schedule.nodes[number].priority,
                preempt=True,
                info="{}",
            ),
            chance=self._chance(number, actor.life, 1),
        )
        actor.election.campaign(actor.local(self.now))
        self._note("%s: starts", actor.name)
        self._step(actor)

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

    def _order(self, actor: Actor, order: Callable[[float], None]) -> None:
        """Have the candidate do ``order`` as soon as no request of it is under way."""
        actor.orders.append(order)
        self._at(self.now, self._living(actor, partial(self._step, actor)))

    def _step(self, actor: Actor) -> None:
        if actor.busy:
            return
        orders, actor.orders = actor.orders, []
        for order in orders:
            order(actor.local(self.now))
        action = actor.election.next_action(actor.local(self.now))
        self._take_changes(actor)
        actor.plan += 1
        if not isinstance(action, Wait):
            self._send(actor, action)
        elif action.until is not None:
            # A hair later, so that rounding does not wake it before its time.
            wake = partial(self._wake, actor, actor.plan)
            self._at(actor.real(action.until) + 1e-6, self._living(actor, wake))

    def _wake(self, actor: Actor, plan: int) -> None:
        if actor.plan == plan:
            self._step(actor)

    # -- requests -----------------------------------------------------------------------

    def _send(self, actor: Actor, request: Request) -> None:
        actor.busy = True
        if len(actor.sent) == MOST_REQUESTS and self.now - actor.sent[0] < LEASE:
            self._fail(NO_RUSH, f"{actor.name}: {MOST_REQUESTS} requests within a lease")
        actor.sent.append(self.now)
        nth, actor.requests = actor.requests, actor.requests + 1
        sent_at, timeout = (
            actor.local(self.now),
            self.now + actor.election.timing.operation_timeout / actor.rate,
        )
        chance = self._chance(actor.number, nth, 0)
        there, back = chance.uniform(0.0001, 0.02), chance.uniform(0.0001, 0.02)
        lost, heard = actor.cut_off, True
        faults = self._on_messages.get((actor.number, nth), ()) if self._stormy() else ()
        for fault in faults:
            match fault:
                case Slow():
                    there, back = fault.there, fault.back
                case LoseRequest():
                    lost = True
                case LoseReply():
                    heard = False
        heard = heard and not lost and self.now + there + back <= timeout
        epoch = (self._losses, self._failovers)
        execute = partial(self._execute, actor, actor.life, nth, request, epoch)
        if not lost:
            answered = partial(self._answered, actor, request, sent_at) if heard else None
            self._at(self.now + there, partial(execute, answered, back, timeout))
            for fault in faults:
                if isinstance(fault, Repeat):
                    self._at(self.now + there + fault.after, partial(execute, None, 0.0, None))
        if not heard:
            self._note("%s: %s will not be answered", actor.name, _Brief(request))
            self._at(timeout, self._living(actor, partial(self._unanswered, actor, request)))

    def _stormy(self) -> bool:
        return self.now < self.schedule.storm

    def _execute(
        self,
        actor: Actor,
        life: int,
        nth: int,
        request: Request,
        epoch: tuple[int, int],
        answered: Callable[[Reply, int, _State], None] | None,
        back: float,
        timeout: float | None,
    ) -> None:
        if self._is_lost_with_the_data(request, epoch):
            self._note("%s: %s is lost with the data", actor.name, _Brief(request))
            if answered is not None and timeout is not None and actor.life == life:
                self._at(timeout, self._living(actor, partial(self._unanswered, actor, request)))
            return
        lines = len(self.store.history.get(NAME, ()))
        reply = self.store.answer(request)
        self._note("%s: %s -> %s", actor.name, _Brief(request), _Brief(reply))
        row = self.store.copy_of(NAME)
        state = (row.term, row.renewals) if row is not None else (0, 0)
        if row is not None:
            self._past.append((self.now, row))
            del self._past[:-64]
        if answered is not None and actor.life == life:
            event = partial(answered, reply, self._clock_steps, state)
            self._at(self.now + back, self._living(actor, event))
        if len(self.store.history.get(NAME, ())) != lines:
            self._spread_news(actor.number, nth)

    def _is_lost_with_the_data(self, request: Request, epoch: tuple[int, int]) -> bool:
        """A failover ends connections; otherwise only what is documented not to be safe.

        An acquire that may make a record, executed after a loss that its sender has outlived.
        """
        losses, failovers = epoch
        if failovers != self._failovers:
            return True
        return losses != self._losses and isinstance(request, Acquire) and request.from_missing

    def _spread_news(self, number: int, nth: int) -> None:
        chance = self._chance(number, nth, 2)
        for other in self.actors:
            if chance.random() < 0.8:
                late = chance.choice([0.01, 0.01, 0.01, 1.0, 10.0]) if self._stormy() else 0.01
                moment = self.now + chance.uniform(0.0001, late)
                self._at(moment, self._living(other, partial(self._hear, other)))

    def _answered(
        self,
        actor: Actor,
        request: Request,
        sent_at: float,
        reply: Reply,
        clock_steps: int,
        state: _State,
    ) -> None:
        actor.busy = False
        if not isinstance(request, Release):
            actor.clock_steps_seen = clock_steps
            actor.state_seen = state
            actor.found_missing = isinstance(reply, Missing)
        actor.election.replied(request, reply, sent_at=sent_at, now=actor.local(self.now))
        self._take_changes(actor)
        self._write(actor)
        self._step(actor)

    def _unanswered(self, actor: Actor, request: Request) -> None:
        actor.busy = False
        actor.election.unanswered(request, actor.local(self.now))
        self._take_changes(actor)
        self._step(actor)

    def _hear(self, actor: Actor) -> None:
        local, election = actor.local(self.now), actor.election
        if actor.busy or actor.cut_off or not election.campaigning or election.step_down_requested:
            return
        for line in self.store.news({NAME: election.observed.cursor}):
            if cursor_order(line.cursor) > cursor_order(election.observed.cursor):
                if line.kind in ("elected", "resigned", "reserved"):
                    actor.found_missing = False
                election.heard(line, local)
        self._step(actor)

    # -- what a leader writes in the name of its term --------------------------------------

    def _write(self, actor: Actor) -> None:
        election = actor.election
        term = election.term(actor.local(self.now))
        if term is None or actor.cut_off:
            return
        nth, actor.writes = actor.writes, actor.writes + 1
        there = 0.001
        for fault in self._on_messages.get((actor.number, nth), ()):
            if isinstance(fault, SlowWrite):
                there = fault.there
        write = partial(self._fenced_write, actor, actor.life, election.requester.nonce, term)
        self._at(self.now + there, write)

    def _fenced_write(self, actor: Actor, life: int, nonce: str, term: int) -> None:
        outcome = self.store.fenced_write(NAME, nonce, term)
        if outcome == "accepted":
            self.writes_accepted += 1
            newest = max(self.highest_written, self.highest_term)
            if term < newest and not self._rolled_back:
                self._fail(FENCED, f"a write of term {term} was accepted after term {newest}")
            self.highest_written = max(self.highest_written, term)
            return
        self.writes_refused += 1
        self._note("%s: a write of term %d is %s", actor.name, term, outcome)
        if actor.life == life:
            self._at(
                self.now,
                self._living(
                    actor, partial(self._contradict, actor, term, gone=outcome == "missing")
                ),
            )

    def _contradict(self, actor: Actor, term: int, *, gone: bool) -> None:
        self._order(actor, lambda local: actor.election.lease_rejected(term, local, gone=gone))

    # -- faults -----------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        self._note("%s", fault)
        match fault:
            case Pause():
                self._pause(self.actors[fault.node], fault.seconds)
            case Cut():
                self._cut(self.actors[fault.node], fault.seconds)
            case Kill():
                self._kill(self.actors[fault.node], fault.down)
            case Resign():
                self._resign(self.actors[fault.node], fault)
            case Transfer():
                self._transfer(self.actors[fault.node], fault.successor)
            case Ask():
                self._ask(fault.successor)
            case Hold():
                self._hold(fault)
            case SetClock():
                self._set_clock(fault.by)
            case Evict() if self._may_be_lost():
                self._losses += 1
                self.store.drop(NAME)
            case Flush() if self._may_be_lost():
                self._losses += 1
                self.store.flush()
            case RollBack():
                self._roll_back(fault.age)

    def _pause(self, actor: Actor, seconds: float) -> None:
        until = min(self.now + seconds, self.schedule.storm)
        actor.paused_until = max(actor.paused_until, until)

    def _cut(self, actor: Actor, seconds: float) -> None:
        actor.cut_off = True

        def mend() -> None:
            actor.cut_off = False

        self._at(min(self.now + seconds, self.schedule.storm), mend)
        if actor.alive:
            self._order(actor, lambda local: actor.election.lost_touch(local))

    def _kill(self, actor: Actor, down: float) -> None:
        if actor.alive:
            actor.alive = False
            self._at(min(self.now + down, self.schedule.storm), partial(self._birth, actor))

    def _resign(self, actor: Actor, fault: Resign) -> None:
        if not actor.alive or self.now < actor.paused_until:
            return
        successor = None if fault.successor is None else self.actors[fault.successor].name
        self._order(actor, lambda local: actor.election.resign(local, successor))
        stand = partial(self._order, actor, lambda local: actor.election.campaign(local))
        self._at(self.now + fault.away, self._living(actor, stand))

    def _transfer(self, actor: Actor, number: int | None) -> None:
        if not actor.alive or self.now < actor.paused_until:
            return
        successor = None if number is None else self.actors[number].name
        self._order(actor, lambda local: actor.election.step_down(local, successor))

    def _make_way(self, actor: Actor, order: StepDownRequested) -> None:
        """What a leader does that is told to step down, once it has the time."""
        self._order(
            actor,
            lambda local: actor.election.step_down(local, order.successor, order.reason),
        )

    def _ask(self, number: int | None) -> None:
        with contextlib.suppress(LeaderError):
            self.store.register.ask(NAME, None if number is None else self.actors[number].name)
            self._spread_news(len(self.actors), int(1000 * self.now))

    def _hold(self, fault: Hold) -> None:
        self.store.register.hold(NAME, self.actors[fault.node].name, fault.seconds)
        self._spread_news(len(self.actors), int(1000 * self.now))
        over = min(self.now + fault.away, self.schedule.storm)
        self._at(over, partial(self._free, self.actors[fault.node]))

    def _free(self, actor: Actor) -> None:
        self._note("%s: let in again", actor.name)
        self.store.register.free(NAME, actor.name)
        self._spread_news(len(self.actors), int(1000 * self.now))

    def _set_clock(self, by: float) -> None:
        if any(actor.clock_steps_seen < self._clock_steps for actor in self.actors if actor.alive):
            return  # two steps between two looks of a candidate are documented not to be safe
        self._clock_steps += 1
        self.server_ahead += by

    def _may_be_lost(self) -> bool:
        """A record made and lost between two looks of who waits for one is not guarded."""
        return not any(actor.alive and actor.found_missing for actor in self.actors)

    def _roll_back(self, age: float) -> None:
        """To a state that every candidate has seen a later one of: others are not guarded."""
        row = self.store.copy_of(NAME)
        seen = min((actor.state_seen for actor in self.actors if actor.alive), default=(0, 0))
        if row is None or seen[0] != row.term:
            return
        for at, row in reversed(self._past):
            if at <= self.now - age and (row.term, row.renewals) < seen:
                self._losses += 1
                self._failovers += 1
                self._rolled_back = True
                self.store.roll_back(NAME, row)
                return

    def _calm_down(self) -> None:
        self._note("the storm is over")
        for actor in self.actors:
            # Lost news is made up for by the timers.
            if actor.alive:
                self._order(actor, lambda local, actor=actor: actor.election.campaign(local))


class _Brief:
    """A request or reply as a trace shows it: what it is and what differs from nothing."""

    def __init__(self, message: Request | Reply) -> None:
        self._message = message

    def __str__(self) -> str:
        if isinstance(self._message, Refused):
            record = self._message.record
            return f"Refused({record.holder} {record.state.value} {record.term}/{record.renewals} {record.remaining:+.3f} s)"
        shown = (
            "attempt",
            "term",
            "seen_term",
            "live_term",
            "watched",
            "silent",
            "from_missing",
            "successor",
            "order",
            "held_for",
        )
        values = [(name, getattr(self._message, name, None)) for name in shown]
        said = ", ".join(f"{name}={value}" for name, value in values if value)
        return f"{type(self._message).__name__}({said})"
