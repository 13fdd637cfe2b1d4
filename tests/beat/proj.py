"""The Celery app of the beat tests: that of the fleet, and what other schedulers need.

More keys of a configuration: ``crontabs`` (name to ``task``, ``crontab``, ``options``),
``periodic`` (a list of ``name``, ``every``, for ``add_periodic_task``), ``django`` (a
SQLite file), ``talks_while_starting`` (see ``TalkingStep``), ``singleton`` (the Redis where
celery-singleton keeps the lock of ``fleet.singleton``).
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import redis
from celery import Celery, bootsteps
from celery.schedules import crontab

from celery_leader.beat import LeaderScheduler
from celery_leader.worker.step import LeaderStep
from tests.fleet import proj as base

DJANGO: dict[str, Any] = {
    "INSTALLED_APPS": ["django_celery_beat"],
    "USE_TZ": True,
    "TIME_ZONE": "UTC",
    "DEFAULT_AUTO_FIELD": "django.db.models.AutoField",
}


OPTIONS = {"timeout": 30, "transaction_mode": "IMMEDIATE"}


def set_up_django(file: str) -> None:
    """Have Django keep its tables in ``file``."""
    import django
    from django.conf import settings

    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "OPTIONS": OPTIONS}
    if not settings.configured:
        settings.configure(DATABASES={"default": database}, **DJANGO)
        django.setup()


def customised(app: Celery, config: dict[str, Any]) -> Celery:
    """``app`` with what ``config`` asks for beyond the fleet's."""
    for name, entry in config.get("crontabs", {}).items():
        app.conf.beat_schedule[name] = {
            "task": f"fleet.{entry['task']}",
            "schedule": crontab(**entry["crontab"]),
            "options": entry.get("options", {}),
        }
    periodic = config.get("periodic", [])
    if periodic:
        # Not at on_after_finalize: a class-based task of the fleet's app has finalized it.
        for entry in periodic:
            task = app.tasks["fleet.plain"]
            app.add_periodic_task(entry["every"], task.s(), name=entry["name"])

    if config.get("singleton"):
        define_singleton(app, config["singleton"])
    if config.get("talks_while_starting"):
        app.steps["consumer"].add(TalkingStep)
    if config.get("django"):
        set_up_django(config["django"])
    return app


def define_singleton(app: Celery, url: str) -> None:
    """Give ``app`` a task of celery-singleton's, whose runs are counted in Redis."""
    from celery_singleton import Singleton

    app.conf.singleton_backend_url = url

    @app.task(base=Singleton, name="fleet.singleton", shared=False)
    def singleton() -> None:
        with redis.Redis.from_url(url) as client:
            client.incr("singleton:runs")


class TalkingStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Asks the broker one thing after the other, and so reads what that has sent meanwhile."""

    requires = (LeaderStep,)

    def start(self, c: Any) -> None:
        """As gossip and the control mailbox do, but for long enough."""
        for _ in range(50):
            c.connection.channel().close()
            time.sleep(0.01)


class DyingAfterScheduler(LeaderScheduler):
    """Stops in its tracks when its third message is published, before that is confirmed."""

    _published = 0

    def apply_async(self, entry: Any, producer: Any = None, **kwargs: Any) -> Any:
        result = super().apply_async(entry, producer=producer, **kwargs)
        self._published += 1
        if self._published == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return result


class DyingBeforeScheduler(LeaderScheduler):
    """Stops in its tracks when its third message is claimed, before it is published."""

    _published = 0

    def apply_async(self, entry: Any, producer: Any = None, **kwargs: Any) -> Any:
        self._published += 1
        if self._published == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().apply_async(entry, producer=producer, **kwargs)


if base.VARIABLE in os.environ:
    app = customised(base.app, json.loads(os.environ[base.VARIABLE]))
