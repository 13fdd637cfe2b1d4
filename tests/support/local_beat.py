"""Beats in this process, with a clock that the test sets and a Redis that is real.

Only the schedules use this clock: their beat reads it, and Redis answers with it when the schedule is
loaded. Leases and terms use their usual clocks.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import redis
from celery import Celery

from celery_leader import install
from celery_leader.beat import LeaderScheduler
from celery_leader.runtime.app_runtime import runtime_of
from tests.support.waiting import wait_until

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
KEY = "celery-leader:celery:schedule:beat"
_TURNS = 5000  # a beat that has not come to rest after so many does not come to rest


class Clock:
    """The clock that the schedules of a test read; ``of_redis`` is one that nobody sets back."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = self.of_redis = now

    def advance(self, seconds: float) -> None:
        """Let time pass, or set the clock back."""
        self.now += timedelta(seconds=seconds)
        self.of_redis = max(self.now, self.of_redis)


class ClockedCelery(Celery):
    """An app whose schedules go by ``wall``."""

    wall: Clock

    def now(self) -> datetime:
        return self.wall.now.astimezone(self.timezone)


class LocalBeat:
    """One beat with its own app, which runs from its start to ``stop``."""

    def __init__(self, app: Any, scheduler: Any = LeaderScheduler) -> None:
        self.app = app
        self.scheduler = scheduler(app, lazy=False)
        store = self.scheduler._shared_store
        load = store.load
        store.load = lambda: replace(load(), now=app.wall.of_redis.timestamp())
        self._stopped = False

    def lead(self) -> LocalBeat:
        """Wait until it leads."""
        wait_until(self.scheduler.leading_term, what="this beat to lead")
        return self

    def hand_over(self, to: LocalBeat) -> LocalBeat:
        """Have ``to`` lead in place of this one, which goes on as a follower."""
        candidate = self.scheduler._candidate.local
        successor = to.scheduler._candidate.local.election.holder
        both = (to.scheduler, self.scheduler)
        while to.scheduler.leading_term() is None:
            # On a busy machine the successor may be late, and this one is elected again.
            self.scheduler._runtime.participation.step_down(candidate, successor, "transfer")
            wait_until(lambda: any(each.leading_term() for each in both), what="a beat to lead")
        to.settle()
        assert self.scheduler.leading_term() is None
        self.settle()
        return to

    def settle(self) -> float:
        """Have it do all it has to do now; how long it would rest then."""
        for _ in range(_TURNS):
            rest = float(self.scheduler.tick())
            if rest > 0 or self.scheduler.leading_term() is None:
                return rest
        raise AssertionError(f"still busy after {_TURNS} turns")

    def stop(self) -> None:
        """End it as SIGTERM does; harmless the second time."""
        if not self._stopped:
            self._stopped = True
            self.scheduler.close()
            self.scheduler.close()


class Bench:
    """Beats that share one broker and one clock, and the messages that they sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self._open = ExitStack()
        self._started = 0

    def app(self, schedule: dict[str, Any] | None = None, **conf: Any) -> Any:
        """An app with ``schedule`` (name to an entry as in ``beat_schedule``)."""
        app = ClockedCelery("bench", broker=conf.pop("broker", self.url), set_as_current=False)
        app.wall = self.clock
        # Their clock is the test's, and not that of Redis.
        app.conf.update({"leader_beat_clock_tolerance": 0, **conf})
        app.conf.beat_schedule = {
            name: {"task": f"bench.{name}", **entry} for name, entry in (schedule or {}).items()
        }
        self._open.callback(app.close)
        return install(app)

    def beat(self, schedule: dict[str, Any] | None = None, **conf: Any) -> LocalBeat:
        """A beat that leads, and has settled."""
        beat = self.started(self.app(schedule, **conf)).lead()
        beat.settle()
        return beat

    def started(self, app: Any, scheduler: Any = LeaderScheduler) -> LocalBeat:
        """A beat of ``app``, which may not lead yet."""
        self._started += 1
        for _ in range(self._started):  # all are of one process, and each has a name of its own
            runtime_of(app).node_names.unused("beat")
        beat = LocalBeat(app, scheduler)
        self._open.callback(beat.stop)
        return beat

    def close(self) -> None:
        """End all beats."""
        self._open.close()
        self.redis.close()

    def messages(self, queue: str = "celery") -> list[dict[str, Any]]:
        """The messages that wait in ``queue``, the oldest first."""
        return [json.loads(text) for text in reversed(self.redis.lrange(queue, 0, -1))]

    def sent(self, entry: str = "tick", queue: str = "celery") -> list[datetime]:
        """The due times of what was sent of ``entry``, in order."""
        return [
            datetime.fromisoformat(message["headers"]["leader_tick"])
            for message in self.messages(queue)
            if message["headers"]["task"] == f"bench.{entry}"
        ]

    def seconds(self, entry: str = "tick") -> list[float]:
        """The same, as seconds since noon."""
        return [(due - NOON).total_seconds() for due in self.sent(entry)]

    def states(self) -> dict[str, dict[str, Any]]:
        """What is stored of every entry."""
        return {name: json.loads(text) for name, text in self.redis.hgetall(KEY).items()}
