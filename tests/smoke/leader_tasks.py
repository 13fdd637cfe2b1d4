"""The tasks of the containers: each writes down where it started, and who led by then."""

from __future__ import annotations

import os
import time

import redis
from celery import shared_task

from celery_leader import current_term, leader_only

#: One step of Redis: its time, and the record of the election as it is at that moment.
RECORD = """
local time = redis.call('TIME')
local holder, term = unpack(redis.call('HMGET', KEYS[1], 'holder', 'term'))
return redis.call('XADD', KEYS[2], '*', 'at', time[1] * 1000 + math.floor(time[2] / 1000),
                  'holder', holder or '', 'held_term', term or '0', unpack(ARGV))
"""


def record(task, term):
    client = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"], socket_timeout=5)
    about = {"id": task.request.id, "node": task.request.hostname, "term": term}
    flat = [part for item in about.items() for part in item]
    client.eval(RECORD, 2, "celery-leader:celery:election:worker", "smoke:starts", *flat)
    client.close()


@leader_only
@shared_task(name="smoke.on_leader", bind=True)
def on_leader(self, seconds=0.0):
    # What it believes goes first: a process that is frozen after it is no liar.
    record(self, current_term() or 0)
    time.sleep(seconds)


@shared_task(name="smoke.tick")
def tick():
    """Sent to a queue that no worker consumes: the test reads its messages."""
