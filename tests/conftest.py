"""What all tests share: one private redis-server per session."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from examples.machine import how_to_get_redis_server
from tests.redis_process import RedisServer, redis_binary
from tests.services import must_have


def pytest_configure() -> None:
    """A shell has what it starts in the background ignore SIGINT, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_binary_or_skip() -> str:
    """The redis-server to run; skips on a laptop that has none, fails in CI."""
    binary = redis_binary()
    must_have(binary, how_to_get_redis_server("test"))
    return binary or ""


@pytest.fixture(scope="session")
def redis_server(redis_binary_or_skip: str) -> Iterator[RedisServer]:
    """A real redis-server of this session, killed at its end."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of ``redis_server``, emptied."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url
