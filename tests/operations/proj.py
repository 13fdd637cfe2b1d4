"""The Celery app of the tests of operations: that of the fleet, and what can be made to hang.

More keys of a configuration: ``receivers`` (signals are recorded, and one receiver fails
and one hangs), ``loop_stops_at`` (a gate: the event loop stops at it when a task named
``fleet.plain`` with that label is received), ``json_log``, ``entries`` (how many a schedule
has, each due every second).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Any

from celery import Celery, signals
from celery.beat import Scheduler

import celery_leader.signals
from celery_leader.beat import LeaderMixin
from tests.fleet import proj as base

SIGNALLED = "operations:signalled"
STORE = "operations:store-hangs"


def _record_signals(recorder: base.Recorder) -> None:
    never = threading.Event()

    def hang(election: str, **_: Any) -> None:
        if election == "worker":
            never.wait(base._GATE_PATIENCE)

    def fail(**_: Any) -> None:
        raise ValueError("a receiver's own mistake")

    for name in (
        "leader_elected",
        "leader_deposed",
        "leader_changed",
        "dispatch_refused",
        "task_forwarded",
        "task_skipped",
    ):

        def record(sender: Any, signal: Any, name: str = name, **arguments: Any) -> None:
            told = {"signal": name, "pid": os.getpid(), **arguments}
            recorder.client.rpush(SIGNALLED, json.dumps(told))

        signal = getattr(celery_leader.signals, name)
        signal.connect(fail, weak=False)
        signal.connect(record, weak=False)
    celery_leader.signals.leader_deposed.connect(hang, weak=False)


def _stop_loop_at(gate: str, recorder: base.Recorder) -> None:
    @signals.task_received.connect(weak=False)
    def stop(request: Any, **_: Any) -> None:
        if request.name == "fleet.plain" and gate in request.args:
            recorder.wait_at_gate(gate)


def _log_json() -> None:
    plain = set(vars(logging.makeLogRecord({})))

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            extra = {k: v for k, v in vars(record).items() if k not in plain and k != "data"}
            return json.dumps(
                {"level": record.levelname, "text": record.getMessage(), **extra}, default=repr
            )

    @signals.after_setup_logger.connect(weak=False)
    def use(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            handler.setFormatter(Formatter())


class StoredScheduler(Scheduler):  # type: ignore[misc]
    """A scheduler that looks at a store at each turn, which may take long."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """As stock, once the store has answered."""
        client = recorder().client
        if client.exists(STORE):
            base.Recorder.wait_at_gate(recorder(), "store")
        return float(super().tick(*args, **kwargs))


class LeaderStoredScheduler(LeaderMixin, StoredScheduler):
    """The same, dispatching on the leading beat only."""


def recorder() -> base.Recorder:
    """Of this process."""
    return base.Recorder(_config["record"])


def customised(app: Celery, config: dict[str, Any]) -> Celery:
    """``app`` with what ``config`` asks for beyond the fleet's."""
    if config.get("receivers"):
        _record_signals(recorder())
    if config.get("loop_stops_at"):
        _stop_loop_at(config["loop_stops_at"], recorder())
    for number in range(config.get("entries", 0)):
        app.conf.beat_schedule[f"e{number}"] = {"task": "fleet.plain", "schedule": 1.0}
    if config.get("json_log"):
        _log_json()
    return app


if base.VARIABLE in os.environ:
    _config = json.loads(os.environ[base.VARIABLE])
    app = customised(base.build(_config, current=True), _config)
