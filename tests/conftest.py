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


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module run in one process, which makes it once."""
    for item in items:
        shared = [name for name in item.fixturenames if _is_of_module(item, name)]
        if shared:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            parameters = [str(parameters[name]) for name in shared if name in parameters]
            item.add_marker(pytest.mark.xdist_group("-".join([item.path.name, *parameters])))


def _is_of_module(item: pytest.Item, fixture: str) -> bool:
    made = item._fixtureinfo.name2fixturedefs.get(fixture)
    return made is not None and made[-1].scope == "module"


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
