"""A fleet per test, and the logs of its processes when the test fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import fleet as fleets
from tests.fleet.fleet import Fleet
from tests.redis_process import RedisServer

NewFleet = Callable[..., Fleet]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    """Show the ends of the logs with a failure."""
    report = yield
    if report.failed:
        for fleet in fleets.LIVE:
            report.sections += [(f"log of {name}", text) for name, text in fleet.logs()]
    return report


@pytest.fixture
def new_fleet(redis_url: str, tmp_path: Path) -> Iterator[NewFleet]:
    """Makes fleets, by default over an emptied Redis; their processes end with the test."""
    with ExitStack() as stack:

        def new(broker: str = redis_url, **config: Any) -> Fleet:
            return stack.enter_context(Fleet(tmp_path, broker, **config))

        yield new


@pytest.fixture
def fleet(new_fleet: NewFleet) -> Fleet:
    """A fleet over an emptied Redis."""
    return new_fleet()


@pytest.fixture
def own_redis(redis_binary_or_skip: str) -> Iterator[RedisServer]:
    """A Redis that only this test uses, and may harm."""
    with RedisServer() as server:
        yield server
