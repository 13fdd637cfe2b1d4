"""The app of the demo: two tasks, each due every second, one of them for the leader only."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

from celery_leader import install, leader_only

REDIS_URL = os.environ["DEMO_REDIS_URL"]
KEY_PREFIX = os.environ["DEMO_KEY_PREFIX"]

INTERVAL = 1.0  # seconds between the ticks of each entry
BODY = 0.5  # seconds that a leader-only body takes, so that a kill can hit one
PLAIN_BODY = 0.05  # seconds; a plain body that a kill hits comes back after an hour

app = Celery("demo", broker=REDIS_URL)
app.conf.update(
    leader_lease_duration=5,
    beat_schedule={
        "plain": {"task": "proj.plain", "schedule": INTERVAL},
        "on-leader": {"task": "proj.on_leader", "schedule": INTERVAL},
    },
    # A body that its worker's death cut short runs again. Celery's own redelivery stays as it is:
    # after an hour. What the leader had in hand does not wait for that.
    task_acks_late=True,
    broker_transport_options={"global_keyprefix": KEY_PREFIX},
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
)
install(app)


@app.task(bind=True)
def plain(self):
    work(self, PLAIN_BODY)


@leader_only
@app.task(bind=True)
def on_leader(self):
    work(self, BODY)


# -- what the demo's judge reads ---------------------------------------------------------

records = redis.Redis.from_url(REDIS_URL)


def work(task, seconds):
    record(task, "started")
    time.sleep(seconds)
    record(task, "done")


def record(task, event):
    """Write down what happens in a stream, where each line gets its time from the server."""
    headers = task.request.headers or {}
    line = {
        "event": event,
        "task": task.name,
        "id": task.request.id,
        "tick": headers.get("leader_tick", ""),
        "term": headers.get("leader_term", ""),
        "node": task.request.hostname,
        "pid": os.getpid(),
    }
    records.xadd(f"{KEY_PREFIX}runs", line)
