"""Extras, besides tasks, that a test may switch on in the configuration of the fleet's app."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any

import redis
from celery import Celery, bootsteps, signals
from celery.schedules import crontab

import celery_leader.signals
from celery_leader.worker.consumer_step import LeaderStep
from tests.support.fleet_app.recorder import GATE_PATIENCE, Recorder

SIGNALLED = "fleet:signalled"

RESULT_DATABASE_VARIABLE = "FLEET_DJANGO_DATABASE"

DJANGO: dict[str, Any] = {
    "INSTALLED_APPS": ["django_celery_beat"],
    "USE_TZ": True,
    "TIME_ZONE": "UTC",
    "DEFAULT_AUTO_FIELD": "django.db.models.AutoField",
}
OPTIONS = {"timeout": 30, "transaction_mode": "IMMEDIATE"}


def customise(app: Celery, config: dict[str, Any], recorder: Recorder) -> None:
    """Give ``app`` what ``config`` asks for; the keys are described at ``Fleet``."""
    for name, entry in config.get("crontabs", {}).items():
        app.conf.beat_schedule[name] = {
            "task": f"fleet.{entry['task']}",
            "schedule": crontab(**entry["crontab"]),
            "options": entry.get("options", {}),
        }
    # Not at on_after_finalize: a class-based task of the fleet's app has finalized it.
    for entry in config.get("periodic", []):
        task = app.tasks["fleet.plain"]
        app.add_periodic_task(entry["every"], task.s(), name=entry["name"])
    for number in range(config.get("entries", 0)):
        app.conf.beat_schedule[f"e{number}"] = {"task": "fleet.plain", "schedule": 1.0}
    if config.get("singleton"):
        _define_singleton(app, config["singleton"])
    if config.get("talks_while_starting"):
        app.steps["consumer"].add(TalkingStep)
    if config.get("django"):
        set_up_django(config["django"])
    if config.get("receivers"):
        _record_signals(recorder)
    if config.get("loop_stops_at"):
        _stop_loop_at(config["loop_stops_at"], recorder)
    if config.get("json_log"):
        _log_json()


def set_up_result_database(database: dict[str, Any]) -> None:
    """Do what a Django project's ``celery.py`` does before it makes its app."""
    os.environ[RESULT_DATABASE_VARIABLE] = json.dumps(database)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.support.django_settings"


def set_up_django(file: str) -> None:
    """Have Django keep its tables in ``file``."""
    import django
    from django.conf import settings

    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "OPTIONS": OPTIONS}
    if not settings.configured:
        settings.configure(DATABASES={"default": database}, **DJANGO)
        django.setup()


def _define_singleton(app: Celery, url: str) -> None:
    """Give ``app`` a task of celery-singleton's, whose runs are counted in Redis."""
    from celery_singleton import Singleton

    app.conf.singleton_backend_url = url

    @app.task(base=Singleton, name="fleet.singleton", shared=False)
    def singleton() -> None:
        with redis.Redis.from_url(url) as client:
            client.incr("singleton:runs")


class TalkingStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Makes many requests to the broker, and so also reads messages that arrived meanwhile."""

    requires = (LeaderStep,)

    def start(self, c: Any) -> None:
        """As gossip and the control mailbox do, but for long enough."""
        for _ in range(50):
            c.connection.channel().close()
            time.sleep(0.01)


def _record_signals(recorder: Recorder) -> None:
    never = threading.Event()

    def hang(election: str, **_: Any) -> None:
        if election == "worker":
            never.wait(GATE_PATIENCE)

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


def _stop_loop_at(gate: str, recorder: Recorder) -> None:
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
