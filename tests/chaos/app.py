"""The Celery app of the chaos run: what its beats dispatch, and a beat without its fence.

A beat reads its configuration, JSON, from the variable ``CELERY_LEADER_CHAOS``; see ``Schedule``.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.schedules import schedule

from celery_leader import install
from celery_leader.beat import LeaderScheduler
from celery_leader.beat.broker_connection import BrokerConnection
from celery_leader.beat.dispatch import Dispatch
from celery_leader.beat.dispatcher import Dispatcher

VARIABLE = "CELERY_LEADER_CHAOS"
ENTRY = "chaos_entry"  # the header that names the entry
BURST = "burst"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Entries that fall due all the time, and a group that falls due at one moment."""

    steady: int = 20
    burst: int = 150
    burst_every: float = 4.0

    @property
    def intervals(self) -> dict[str, float]:
        """Entry by name, with its interval in seconds."""
        # Of different length, so that something is due every few hundredths of a second.
        steady = {f"steady-{i:03}": round(0.8 + 0.02 * i, 3) for i in range(self.steady)}
        return steady | {f"{BURST}-{i:03}": self.burst_every for i in range(self.burst)}


class PublishThenWrite(Dispatcher):
    """What a careful scheduler without a fence does: ask "do I lead?", publish, write state."""

    def send(self, term: int, dispatch: Dispatch, publish: Any) -> bool:
        self._publish_at_once(term, dispatch, publish)
        outcome = self._move(term, dispatch, dispatch.old, dispatch.new)
        return self._store.has_agreed(outcome, term)


class UnfencedScheduler(LeaderScheduler):
    """Shows that the judge would see it: all of ``LeaderScheduler`` but the fence."""

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        broker = BrokerConnection(app, self._runtime, heartbeat=self._candidate.broker_heartbeat)
        self._dispatcher = PublishThenWrite(app, self._runtime, self._shared_store, broker)


def build(config: dict[str, Any]) -> Celery:
    """The app that ``config`` asks for."""
    app = Celery("chaos", broker=config["broker"])
    app.conf.update(
        leader_lease_duration=config["lease"],
        leader_beat_catch_up=config["catch_up"],
        leader_beat_catch_up_max=100_000,
    )
    app.conf.beat_schedule = {
        name: {
            "task": "chaos.nothing",
            "schedule": schedule(every),
            "options": {"headers": {ENTRY: name}},
        }
        for name, every in Schedule(**config["schedule"]).intervals.items()
    }
    install(app)
    app.task(name="chaos.nothing", shared=False)(_nothing)
    for module in config["imports"]:
        importlib.import_module(module)
    return app


def _nothing() -> None:
    """What nobody runs: the messages are read, not worked off."""


if VARIABLE in os.environ:
    app = build(json.loads(os.environ[VARIABLE]))
