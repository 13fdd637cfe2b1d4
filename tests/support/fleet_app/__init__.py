"""The Celery app that the workers, beats and senders of fleets run.

A worker or beat reads its configuration as JSON from the environment variable ``FLEET``. A test
calls ``build()`` with the same values to send tasks. Every task writes what it saw to a Redis
list, and tests check that list. ``Fleet`` describes the keys of a configuration.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from celery import Celery
from celery.schedules import schedule

from celery_leader import install
from tests.support.fleet_app.canvas_tasks import define_canvas_tasks
from tests.support.fleet_app.extras import customise, set_up_result_database
from tests.support.fleet_app.recorder import Recorder, probe
from tests.support.fleet_app.tasks import define_limited_tasks, define_tasks

VARIABLE = "FLEET"


def build(config: dict[str, Any], *, current: bool = False) -> Celery:
    """The app that ``config`` asks for."""
    broker = config["broker"]
    if "result_database" in config:
        set_up_result_database(config["result_database"])
    app = Celery(
        "fleet",
        broker=broker,
        backend=config.get("backend", broker),
        set_as_current=current,
    )
    app.conf.update(worker_hijack_root_logger=True, broker_connection_retry_on_startup=True)
    # Celery kills a spawned pool process that takes longer, as it may on a busy machine.
    app.conf.update(worker_proc_alive_timeout=60.0)
    app.conf.update(config.get("conf", {}))
    app.conf.beat_schedule = {
        name: _entry(entry) for name, entry in config.get("schedule", {}).items()
    }
    if config.get("install", True):
        install(app)
    recorder = Recorder(config["record"])
    define_tasks(app, recorder)
    define_canvas_tasks(app, recorder)
    if config.get("limited"):
        define_limited_tasks(app, recorder)
    for name in config.get("unknown", ()):
        app.tasks.unregister(f"fleet.{name}")
    app.conf.update(config.get("conf_after_install", {}))
    return app


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": f"fleet.{entry['task']}",
        "schedule": schedule(entry["every"]),
        "args": [object()] if entry.get("unsendable") else entry.get("args", []),
        "options": entry.get("options", {}),
    }


def _rest(seconds: float) -> None:
    threading.Event().wait(seconds)


if "FAKETIME_DONT_FAKE_MONOTONIC" in os.environ:
    # libfaketime moves the deadline of time.sleep although its clock is not faked.
    time.sleep = _rest

if VARIABLE in os.environ:
    _config = json.loads(os.environ[VARIABLE])
    app = build(_config, current=True)
    customise(app, _config, Recorder(_config["record"]))
    if _config.get("probe"):
        probe(app, Recorder(_config["record"]))
