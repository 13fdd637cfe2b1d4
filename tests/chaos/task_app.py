"""The Celery app of the chaos run of tasks: every body says in Redis that it starts and ends.

Who leads when a body starts is not for the worker to say: one script writes the start down
together with the election's record and the time, as they are in Redis at that moment.
A process reads its configuration, JSON, from the variable ``VARIABLE``.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from typing import Any

import redis
from celery import Celery, Task

from celery_leader import install, leader_only

VARIABLE = "CELERY_LEADER_CHAOS_TASKS"
RUNS = "chaos:runs"
RECORD = "celery-leader:celery:election:worker"
LEADER_QUEUE = "celery.leader"

# kombu's visibility timeout is an hour, its default, and a message of the leader queue never waits
# for it. For what a killed worker had of a *plain* queue the run has the hour pass: `Witness`.
# Where the tasks are marked for nobody, all queues are plain, and it is so many seconds.
VISIBILITY = 6
RESTORE_EVERY = 1  # seconds between two looks for what is to be delivered again
BODY = 0.01  # seconds a body takes
LONG_BODY = 7.0  # seconds; longer than the lease
EARLY_BODY = 0.2  # seconds; so long that a kill hits one
FAR = 12.0  # seconds; the longest time that a message waits for its ETA

#: What the tasks are: leader-only, marked for nobody, or those of an app without the package.
GUARDED, UNMARKED, PLAIN = "guarded", "unmarked", "plain"

# KEYS runs record
# ARGV id node try checked
_STARTED = """
local time = redis.call('TIME')
local record = redis.call('HMGET', KEYS[2], 'holder', 'term', 'state', 'expires_at')
redis.call('XADD', KEYS[1], '*', 'event', 'start', 'id', ARGV[1], 'node', ARGV[2],
           'try', ARGV[3], 'checked', ARGV[4],
           'at', string.format('%.0f', time[1] * 1000000 + time[2]),
           'holder', record[1] or '', 'term', record[2] or '',
           'state', record[3] or '', 'expires_at', record[4] or '0')
"""


class Records:
    """Writes down what happens in this process, on a connection that no fault hits."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: redis.Redis | None = None
        self._pid = 0

    def _connected(self) -> redis.Redis:
        if self._client is None or self._pid != os.getpid():  # not that of before a fork
            self._client = redis.Redis.from_url(self._url)
            self._started = self._client.register_script(_STARTED)
            self._pid = os.getpid()
        return self._client

    def started(self, request: Any) -> None:
        """The body of ``request`` starts."""
        self._connected()
        self._started(
            keys=[RUNS, RECORD],
            args=[request.id, request.hostname, request.retries, request.checked_at],
        )

    def ended(self, request: Any) -> None:
        """The body of ``request`` has done what it is for."""
        self._connected().xadd(RUNS, {"event": "end", "id": request.id})


class Noted(Task):  # type: ignore[misc]
    """Notes when the guard of a leader-only body had let it pass."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.request.checked_at = time.time_ns() // 1000


def build(config: dict[str, Any]) -> Celery:
    """The app that ``config`` asks for: ``broker``, ``redis``, ``lease``, ``how``, ``imports``."""
    app = Celery("chaos", broker=config["broker"], backend=config["redis"].replace("/0", "/1"))
    app.conf.update(
        leader_lease_duration=config["lease"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=4,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A body that ends while its worker is cut off sends what is linked to it afterwards;
        # Celery's default gives up within a second and fails the task.
        task_publish_retry_policy={"max_retries": 60, "interval_step": 0.1, "interval_max": 0.5},
        result_expires=3600,
        # Five seconds for Celery's claim to a chord: a killed worker's is over when its task
        # is delivered again. (Not if only its pool process was killed.)
        result_chord_join_timeout=2.0,
        broker_transport_options={
            **({} if config["how"] == GUARDED else {"visibility_timeout": VISIBILITY}),
            "unacked_restore_interval": RESTORE_EVERY,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": VISIBILITY,
            # A connection that fell silent is found out before the run is over.
            "health_check_interval": 2,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
        },
    )
    if config["how"] != PLAIN:
        install(app)  # where the tasks are unmarked, an election that nothing heeds
    if config["how"] == GUARDED:
        define(app, Records(config["redis"]), leader_only, leader_only(on_follower="skip"))
    else:
        define(app, Records(config["redis"]), lambda task: task, lambda task: task)
    for module in config["imports"]:
        importlib.import_module(module)
    return app


def define(app: Celery, records: Records, mark: Any, mark_skip: Any) -> None:
    """Give ``app`` its tasks."""

    def body(self: Any, *_: Any) -> int:
        records.started(self.request)
        time.sleep(BODY)
        records.ended(self.request)
        return 1

    def skipped(self: Any) -> int:
        return body(self)

    def long(self: Any) -> int:
        records.started(self.request)
        time.sleep(LONG_BODY)
        records.ended(self.request)
        return 1

    def again(self: Any) -> int:
        if self.request.retries:
            return body(self)
        records.started(self.request)
        raise self.retry(countdown=0.3)

    def early(self: Any) -> int:
        records.started(self.request)
        time.sleep(EARLY_BODY)
        records.ended(self.request)
        return 1

    marks = ((body, mark), (long, mark), (skipped, mark_skip), (again, mark), (early, mark))
    for function, marked in marks:
        own = {"name": f"chaos.{function.__name__}", "acks_late": function is not early}
        marked(app.task(bind=True, base=Noted, shared=False, **own)(function))


if VARIABLE in os.environ:
    app = build(json.loads(os.environ[VARIABLE]))
