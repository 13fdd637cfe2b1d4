"""A separate project: an app whose name, tasks and entries come from the environment.

The variable ``PROJECT`` holds JSON: ``name``, ``broker``, ``tasks`` (names), ``entries`` (name to
``task`` and ``every``), ``conf``.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from celery_leader import install, leader_only

VARIABLE = "PROJECT"


def build(config: dict[str, Any]) -> Celery:
    """The app that ``config`` asks for."""
    app = Celery(config["name"], broker=config["broker"])
    app.conf.update(
        broker_connection_retry_on_startup=True,
        beat_schedule={
            name: {"task": entry["task"], "schedule": entry["every"]}
            for name, entry in config.get("entries", {}).items()
        },
        **config.get("conf", {}),
    )
    install(app)
    for name in config["tasks"]:
        leader_only(app.task(name=name, shared=False)(_done))
    return app


def _done() -> None:
    """Nothing."""


if VARIABLE in os.environ:
    app = build(json.loads(os.environ[VARIABLE]))
