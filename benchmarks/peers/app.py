"""The Celery app that every contender's beat dispatches from.

A process reads its configuration, JSON, from the variable ``VARIABLE``: ``broker``,
``settings`` (Celery settings), ``intervals`` (entry by name, with its interval in seconds)
and ``install`` (whether celery_leader is installed).
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery
from celery.schedules import schedule

from celery_leader import install
from tests.chaos.app import ENTRY

VARIABLE = "BENCHMARK_PEER"


def build(config: dict[str, Any]) -> Celery:
    """The app that ``config`` asks for."""
    app = Celery("peers", broker=config["broker"])
    app.conf.update(config["settings"])
    app.conf.beat_schedule = {
        name: {
            "task": "peers.nothing",
            "schedule": schedule(every),
            "options": {"headers": {ENTRY: name}},
        }
        for name, every in config["intervals"].items()
    }
    if config["install"]:
        install(app)
    return app


if VARIABLE in os.environ:
    config = json.loads(os.environ[VARIABLE])
    app = build(config)
