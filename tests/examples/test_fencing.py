"""The example of a fenced write: an earlier leader's is refused."""

from __future__ import annotations

import pytest
import redis

from celery_leader import NotLeader
from examples.fencing.report import write


def test_a_write_with_a_stale_term_is_refused_and_changes_nothing(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        write(client, "figures", "first", 7)
        write(client, "figures", "again", 7)
        write(client, "figures", "successor's", 8)
        with pytest.raises(NotLeader, match="later leader than term 7"):
            write(client, "figures", "late", 7)
        assert client.mget("{figures}:value", "{figures}:term") == ["successor's", "8"]
