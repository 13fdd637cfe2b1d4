"""A nudge ends the wait of the worker that sends it, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

from kombu import Connection

from celery_leader.worker.nudge import Nudge
from tests.support.redis_server import RedisServer

NAME = "celery-leader:celery:nudge:w1"


def test_a_nudge_that_nobody_takes_expires(redis_url: str, redis_server: RedisServer) -> None:
    with Connection(redis_url) as connection, redis_server.client() as client:
        nudge = Nudge(connection.channel(), NAME)
        nudge.send()
        ttl: Any = client.ttl(NAME)
        assert 0 < ttl <= 60
        nudge.remove()
        assert not client.exists(NAME)
