"""A leader-only task whose writes a later leader's can not be undone by.

``celery -A examples.fencing.report worker``, as often as you like.
"""

from __future__ import annotations

import os

import redis
from celery import Celery

from celery_leader import NotLeader, check_leader, install, leader_only

URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery("report", broker=URL)
install(app)

# KEYS: the value, and the term it was written with. ARGV: the new ones.
# Answers 1, or 0 if a later leader has written.
WRITE = """
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if tonumber(ARGV[2]) < last then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""


def write(client: redis.Redis, key: str, value: str, term: int) -> None:
    """Write ``value``, unless a leader of a higher term has written already."""
    # One slot, so that it works in Redis Cluster too.
    if not client.eval(WRITE, 2, f"{{{key}}}:value", f"{{{key}}}:term", value, str(term)):
        raise NotLeader(f"{key} was written by a later leader than term {term}")


@app.task(acks_late=True, autoretry_for=(NotLeader,), retry_backoff=True)
@leader_only(on_deposed="abort")
def report() -> None:
    client = redis.Redis.from_url(URL)
    for day in ("monday", "tuesday", "wednesday"):
        term = check_leader()  # always the one that this body began with
        write(client, f"report:{day}", f"the figures of {day}", term)
