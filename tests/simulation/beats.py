"""Beats of several versions of one app that lead in turn, in simulated time.

Each is a shipped ``LeaderScheduler`` with the shipped ``Dispatcher`` and ``ScheduleStore``; the
clock, Redis, the broker and the election are the world's. There is no thread, socket or wait.
``python -m tests.simulation.beats --seed N`` runs one world and shows what happens.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

from celery import Celery, beat
from celery.schedules import crontab, schedule
from kombu.exceptions import OperationalError

from celery_leader.beat import LeaderScheduler, shared_states
from celery_leader.beat.broker_connection import BrokerConnection
from celery_leader.beat.dispatcher import Dispatcher
from celery_leader.beat.fenced_store import FencedStore
from celery_leader.beat.planner import Planner
from celery_leader.beat.shared_states import SharedStates
from celery_leader.beat.transport import PublishBuffer
from celery_leader.core.events import Deposed
from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.settings import BEAT, CatchUp, Settings
from celery_leader.store.schedule_store import Push, ScheduleStore
from celery_leader.store.scripts import Keys
from tests.simulation.ticks import Broken, Judge, Reign, Spec
from tests.support.fake_schedule import FakeSchedule, Lease, Written

UTC = timezone.utc
LEASE = 10.0
SECOND = 1_000_000
MODES = ("one", "one", "all", "none")
#: A zone, and moments shortly before its clocks change, or far from that.
STARTS = {
    "UTC": ["2026-06-01T12:00", "2026-12-31T23:50"],
    "Europe/Paris": ["2026-03-29T00:20", "2026-10-25T00:10", "2026-06-01T12:00"],
    "America/New_York": ["2026-03-08T06:15", "2026-11-01T05:05"],
    "Asia/Kolkata": ["2026-06-01T12:00"],
}
_STEADY = ("UTC", "Asia/Kolkata")
_TURNS = 3000  # a beat that has not come to rest after so many does not come to rest


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """What goes together: how often entries are due, and how long things take."""

    step: float
    intervals: tuple[float, ...]
    relative: tuple[float, ...]
    minutes: tuple[tuple[int, ...], ...]
    hours: tuple[tuple[int, ...], ...]


_DAY = tuple(range(24))
SCALES = (
    Scale(4.0, (0.7, 1.5, 7.0, 10.25, 60.0), (5.0, 60.0), ((*range(60),),), (_DAY,)),
    Scale(
        150.0,
        (20.0, 90.0, 90.2, 600.0),
        (90.0, 60.0, 3600.0),
        ((*range(0, 60, 5),), (30,), (*range(0, 60, 7),)),
        (_DAY, (1, 2, 3)),
    ),
    Scale(
        5000.0,
        (1800.0, 5400.5, 86400.0),
        (3600.0, 86400.0, 5400.0),
        ((0,), (30,), (5, 35)),
        (_DAY, (2,), (1,), (3,), (*range(0, 24, 2),)),
    ),
)


class _App(Celery):
    """An app whose time is the world's, by the clock of one beat."""

    clock: Callable[[], datetime]

    def now(self) -> datetime:
        return self.clock().astimezone(self.timezone)


@lru_cache
def _app(beat: int, zone: str) -> _App:
    app = _App("simulated", broker="redis://nowhere", set_as_current=False)
    app.conf.update(timezone=zone, result_expires=None)
    return app


@lru_cache
def _settings() -> Settings:
    return Settings.of(_app(0, "UTC"))


class _AppRuntime:
    """What a scheduler asks of its app's part in the elections."""

    def __init__(self, world: World, node: Node, settings: Settings) -> None:
        self.settings = settings
        self.redis = SimpleNamespace(is_broker=True, keys=Keys(settings.namespace))
        self.participation = SimpleNamespace(
            # Redis has refused it.
            lease_rejected=lambda candidate, term, *, gone: world.deposed(node, term)
        )
        self.observers = SimpleNamespace(tell=lambda event: None)
        self.app = _app(node.number, world.zone)

    def always_leads(self) -> bool:
        """Never without being elected."""
        return False


class _Producer:
    """Takes a message in the way that kombu's transport does."""

    published = 0

    def __init__(self, world: World, buffer: PublishBuffer | None) -> None:
        self._world, self._buffer = world, buffer

    def take(self, entry: Any) -> None:
        """Publish, or hand over to who claims the tick with it."""
        headers = entry.options["headers"]
        label, term = headers["leader_tick"], headers["leader_term"]
        task_id = entry.options["task_id"]
        if self._buffer is None:
            self._world.publish(entry.name, label, term, task_id)
            self.published += 1
        elif self._buffer.delivery is not None:
            text = json.dumps([label, term, task_id]).encode()
            self._buffer.delivery.deliver([Push("LPUSH", "celery", text)])


class _Store(FencedStore):
    """The shipped one, with the world's Redis."""

    def __init__(self, world: World, node: Node, runtime: Any) -> None:
        super().__init__(runtime, None)
        self._candidate = SimpleNamespace(election=node)  # type: ignore[assignment]
        self._client = SimpleNamespace(run=lambda calls: world.run(node, calls))  # type: ignore[assignment]
        self._store = ScheduleStore(self._run, runtime.redis.keys, BEAT)


class _Broker(BrokerConnection):
    """The world's broker."""

    def __init__(self, world: World, app: Any, runtime: Any) -> None:
        super().__init__(app, runtime, PublishBuffer() if world.fenced else None)
        self._sends = _Producer(world, self.buffer)

    def producer(self) -> Any:
        return self._sends

    @property
    def lost(self) -> tuple[type[Exception], ...]:
        return (OperationalError,)


class _Bare(beat.Scheduler):  # type: ignore[misc]
    """Celery's scheduler without the making of a message."""

    def apply_async(self, entry: Any, producer: Any = None, **_: Any) -> Any:
        producer.take(entry)


class _Scheduler(LeaderScheduler, _Bare):
    """The shipped one, elected by the world."""

    node: Node

    def leading_term(self) -> int | None:
        return self.node.term


@dataclasses.dataclass
class Node:
    """One beat process: its version and its clock, and whether it leads."""

    number: int
    specs: dict[str, Spec]
    offset: timedelta
    nonce: str = ""
    term: int | None = None
    scheduler: Any = None
    outage: int = 0
    read: list[datetime] = dataclasses.field(default_factory=list)

    @property
    def holder(self) -> str:
        """Its name."""
        return f"beat@{self.number}"

    @property
    def requester(self) -> Node:
        """The part of an election that knows the nonce."""
        return self


def _timetable(spec: Spec) -> Any:
    if spec.kind == "cron":
        minutes, hours = (",".join(map(str, each)) for each in (spec.minutes, spec.hours))
        return crontab(minute=minutes, hour=hours)
    return schedule(timedelta(seconds=spec.seconds), relative=spec.kind == "relative")


class World:
    """One run of one seed."""

    def __init__(self, seed: int, tell: Callable[[str], None] = lambda _: None) -> None:
        self.chance = chance = random.Random(seed)
        self._tell = tell
        self.scale = chance.choice(SCALES)
        self.zone = chance.choice(list(STARTS))
        start = datetime.fromisoformat(chance.choice(STARTS[self.zone])).replace(tzinfo=UTC)
        self.start = start + timedelta(microseconds=chance.randrange(SECOND))
        self.passed = 0  # microseconds
        self.fenced = chance.random() < 0.7
        agree = chance.random() < 0.5
        self.loses = chance.random() < 0.25
        self.lossy = chance.choice([0.0, 0.05, 0.15])
        self.retention = self.scale.step * chance.choice([20, 1000, 1000])
        self.deadline = chance.choice([None, None, 30, 600, 3600])
        self.most = chance.choice([1, 3, 100])
        self.versions = self._versions()
        self.nodes = [
            Node(number, chance.choice(self.versions), self._offset(agree))
            for number in range(chance.randint(2, 4))
        ]
        self.judge = Judge(self.zone, self.most, self.deadline, self.retention, agree, self.fenced)
        self.redis = FakeSchedule(self._redis_micros, self._written)
        self.leader: Node | None = None
        self.broken: Broken | None = None
        self._term = self._lives = self._depth = 0
        self._late: list[tuple[int, Any, tuple[datetime, ...]]] = []
        self.counts = dict.fromkeys(
            ("elections", "restarts", "paused", "lost", "late", "Redis lost"), 0
        )
        for node in self.nodes:
            self._start(node)

    # -- what is drawn ------------------------------------------------------------------

    def _offset(self, agree: bool) -> timedelta:
        return timedelta(seconds=0 if agree else self.chance.uniform(-20, 20))

    def _spec(self) -> Spec:
        chance, mode = self.chance, self.chance.choice(MODES)
        kind = chance.choice(["every", "every", "cron", "cron", "relative"])
        if kind == "cron":
            minutes, hours = chance.choice(self.scale.minutes), chance.choice(self.scale.hours)
            return Spec(kind, minutes=minutes, hours=hours, mode=mode)
        if self.zone not in _STEADY:  # in a repeated hour Celery leaves them as they are
            kind = "every"
        seconds = self.scale.intervals if kind == "every" else self.scale.relative
        return Spec(kind, chance.choice(seconds), mode=mode)

    def _versions(self) -> list[dict[str, Spec]]:
        first = {name: self._spec() for name in "abcd"}
        versions = [first]
        for _ in range(self.chance.randint(1, 2)):
            version = {}
            for name, spec in versions[-1].items():
                match self.chance.choice(["same", "same", "same", "gone", "changed", "mode"]):
                    case "same":
                        version[name] = spec
                    case "changed":
                        version[name] = self._spec()
                    case "mode":
                        version[name] = dataclasses.replace(spec, mode=self.chance.choice(MODES))
            if self.chance.random() < 0.5:
                version[f"e{len(versions)}"] = self._spec()
            versions.append(version)
        return versions

    # -- time, Redis and the broker -------------------------------------------------------

    @property
    def now(self) -> datetime:
        """By the right clock, which is Redis's."""
        return self.start + timedelta(microseconds=self.passed)

    def monotonic(self) -> float:
        """Seconds that have passed."""
        return self.passed / SECOND

    def _redis_micros(self) -> int:
        return (self.now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    def _read(self, node: Node) -> datetime:
        read = self.now + node.offset
        if not node.read or node.read[-1] != read:
            node.read.append(read)
        return read

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in which what is under way arrives."""
        end = self.passed + max(1, round(seconds * SECOND))
        while self._late and self._late[0][0] <= end:
            self.passed, calls, read = self._late.pop(0)
            self._execute(calls, read)
        self.passed = end

    def _execute(self, calls: Any, read: tuple[datetime, ...]) -> list[Any]:
        self.judge.read = read
        return self.redis.run(calls)

    def run(self, node: Node, calls: Any) -> list[Any]:
        """What the connection of ``node`` makes of these calls."""
        read, chance = tuple(node.read), self.chance
        if node.outage:
            node.outage -= 1
            raise StoreUnavailable("cut off")
        if chance.random() >= self.lossy:
            return self._execute(calls, read)
        what = chance.choice(["request", "reply", "late", "slow", "paused"])
        self._say(f"{node.holder}: {what}")
        if what == "slow":
            self.pass_time(chance.uniform(0.1, 4.0))
            return self._execute(calls, read)
        if what == "paused":
            self._pause(node)
            return self._execute(calls, read)
        self.counts["late" if what == "late" else "lost"] += 1
        node.outage = chance.choice([0, 1, 1, 2, 3])
        if what == "reply":
            self._execute(calls, read)
        elif what == "late":
            arrives = self.passed + round(chance.uniform(0.1, 15) * SECOND)
            self._late.append((arrives, calls, read))
            self._late.sort(key=lambda each: each[0])
        raise StoreUnavailable("no answer")

    def publish(self, entry: str, label: str, term: int, task_id: str) -> None:
        """A message arrives at the broker, or is lost, or the answer is."""
        lost = self.chance.choice(["request", "reply"]) if self.chance.random() < self.lossy else ""
        if lost != "request":
            self._say(f"published: {entry} {label}")
            with self._noting():
                self.judge.message(entry, label, term, task_id)
        if lost:
            raise OperationalError("no answer")

    def _written(self, what: Written) -> None:
        self._say(f"term {what.term}: {what.entry}: {what.new} {what.pushed or ''}")
        if what.entry:  # the dispatcher's probe has no name
            with self._noting():
                self.judge.written(what, self.now)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        # What is raised in the middle of a send, beat would take for the failure of that.
        try:
            yield
        except Broken as exc:
            self.broken = self.broken or exc

    # -- who leads -----------------------------------------------------------------------

    def _start(self, node: Node) -> None:
        """A process begins."""
        self._lives += 1
        node.nonce, node.term, node.outage = f"life {self._lives}", None, 0
        app = _app(node.number, self.zone)
        app.clock = lambda: self._read(node)
        app.conf.beat_cron_starting_deadline = self.deadline
        app.conf.beat_schedule = {
            name: {
                "task": f"tasks.{name}",
                "schedule": _timetable(spec),
                "options": {"leader_catch_up": spec.mode},
            }
            for name, spec in node.specs.items()
        }
        node.scheduler = scheduler = _Scheduler(app, lazy=True)
        settings = dataclasses.replace(
            _settings(),
            beat_catch_up=CatchUp.ONE,
            beat_catch_up_max=self.most,
            schedule_retention=self.retention,
        )
        runtime = _AppRuntime(self, node, settings)
        scheduler.node, scheduler._runtime = node, runtime
        scheduler._candidate._runtime = runtime
        scheduler._candidate._elected.set()  # it does not wait to be elected: the world ticks it
        scheduler._shared_store = store = _Store(self, node, runtime)
        scheduler._states = SharedStates(runtime, store)  # type: ignore[arg-type]
        broker = _Broker(self, app, runtime)
        scheduler._dispatcher = Dispatcher(app, runtime, store, broker)  # type: ignore[arg-type]
        scheduler._planner = Planner(app, settings, scheduler.is_due, scheduler.max_interval)
        scheduler.setup_schedule()

    def elect(self, node: Node) -> None:
        """``node`` leads from now on."""
        self._term += 1
        self.counts["elections"] += 1
        self.redis.lease = Lease(node.nonce, self._term)
        node.term, self.leader, node.read = self._term, node, []
        self.judge.leads(
            self._term, Reign(node.number, node.specs, node.offset, self.now + node.offset)
        )
        self._say(f"{node.holder} leads in term {self._term}")

    def end_reign(self) -> Node | None:
        """Nobody leads; who did."""
        node, self.leader = self.leader, None
        if self.redis.lease is not None:
            self.redis.lease = dataclasses.replace(self.redis.lease, held=False)
        if node is not None and node.term is not None:
            self.deposed(node, node.term)
        return node

    def deposed(self, node: Node, term: int) -> None:
        """``node`` knows that it leads no longer."""
        if node.term == term:
            node.term = None
            node.scheduler._candidate.on_change(Deposed(BEAT, node.holder, term, "expired", 0.0))
            if self.leader is node:
                self.leader = None

    def _pause(self, node: Node) -> None:
        """``node`` stands still in the middle of a turn, and another leads meanwhile."""
        others = [each for each in self.nodes if each is not node]
        if self._depth or self.leader is not node:
            return self.pass_time(self.chance.uniform(0.1, 2.0))
        self.counts["paused"] += 1
        self._depth += 1
        term, node.term = node.term, None
        self.end_reign()
        self.pass_time(LEASE)
        if self.chance.random() < 0.8:
            self.elect(self.chance.choice(others))
            self.live(self.chance.expovariate(1 / self.scale.step))
        self._depth -= 1
        # It wakes, and what it was about to do is still in its term.
        node.term = term
        self.deposed(node, term or 0)
        return None

    def settle(self, node: Node) -> float:
        """Have it do all it has to do now; how long it rests then."""
        for _ in range(_TURNS):
            node.read = []
            rest = node.scheduler.tick()
            if self.broken is not None:
                raise self.broken
            if node.term is None:
                return LEASE
            if rest > 0:
                scheduler, leads = node.scheduler, node.scheduler._led_term == node.term
                if leads and node.read and not (scheduler._retries.failures or scheduler._aside):
                    self.judge.at_rest(self.redis.states, node.term, node.read[0])
                return float(rest)
        raise Broken(f"{node.holder} is still busy after {_TURNS} turns")

    def live(self, seconds: float) -> None:
        """Let the leader do its work for so long, if there is one."""
        end = self.passed + round(seconds * SECOND)
        while self.passed < end:
            node, left = self.leader, (end - self.passed) / SECOND
            rest = left if node is None else self.settle(node)
            self.pass_time(min(rest, left))

    # -- what happens -----------------------------------------------------------------------

    def run_all(self) -> None:
        """Live through it all.

        Raises:
            Broken: a promise was.
        """
        with _quiet(), mock.patch.object(shared_states, "now", self.monotonic):
            for _ in range(self.chance.randint(5, 14)):
                self._happens()
                self.live(self.chance.expovariate(1 / self.scale.step))
            # In the end all goes well, and nothing is left due.
            self.lossy = 0.0
            self.pass_time(2 * LEASE)
            for node in self.nodes:
                node.outage = 0
            self.end_reign()
            last = self.chance.choice(self.nodes)
            self.elect(last)
            self.live(self.scale.step)
            self.settle(last)

    def _happens(self) -> None:
        chance = self.chance
        what = chance.choice(["handover", "handover", "gap", "restart", "restart", "slow", "none"])
        if self.loses and chance.random() < 0.15:
            self._lose()
        if what == "slow" and self.leader is not None:
            return self.pass_time(chance.uniform(0, LEASE))
        if what == "restart":
            node = chance.choice(self.nodes)
            if node is self.leader:
                self.end_reign()
            if chance.random() < 0.3:
                node.specs = chance.choice(self.versions)
            self.counts["restarts"] += 1
            self._say(f"{node.holder} is started again, with {node.specs}")
            self._start(node)
        elif what in ("gap", "handover"):
            self.end_reign()
            if what == "gap":
                self.pass_time(chance.expovariate(1 / (3 * self.scale.step)))
        if self.leader is None and chance.random() < 0.9:
            self.elect(chance.choice(self.nodes))
        return None

    def _lose(self) -> None:
        states = self.redis.hashes["schedule"]
        names = sorted(states) if self.chance.random() < 0.4 else sorted(states)[:1]
        for name in names:
            text = states.pop(name).decode()
            self.judge.lost(name.decode(), text)
            self.counts["Redis lost"] += 1
        self._say(f"Redis loses {names}")

    def _say(self, what: str) -> None:
        self._tell(f"{self.now:%d %H:%M:%S.%f} {what}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> int:
    """Run one seed and show it, or many."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.beats", description=__doc__)
    parser.add_argument("--seed", type=int, help="the world to show, or the first of many")
    parser.add_argument("--worlds", type=int, default=1, help="how many (1, which is shown)")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    print(f"--seed {first} --worlds {options.worlds}", flush=True)
    broken, started, sent = 0, time.perf_counter(), 0
    for seed in range(first, first + options.worlds):
        world = World(seed, print if options.worlds == 1 else lambda _: None)
        try:
            world.run_all()
        except Broken as exc:
            broken += 1
            print(f"seed {seed}: {exc}", flush=True)
        sent += world.judge.dispatched
    took = time.perf_counter() - started
    print(f"{options.worlds} worlds, {sent} ticks, {took:.1f} s, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
