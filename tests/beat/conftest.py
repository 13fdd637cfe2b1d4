"""Fleets of beats, and beats in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.beat.beats import BeatFleet
from tests.beat.local import Bench
from tests.fleet.conftest import pytest_runtest_makereport as pytest_runtest_makereport

NewFleet = Callable[..., BeatFleet]


@pytest.fixture
def new_fleet(redis_url: str, tmp_path: Path) -> Iterator[NewFleet]:
    """Makes fleets, by default over an emptied Redis; their processes end with the test."""
    with ExitStack() as stack:

        def new(broker: str = redis_url, **config: Any) -> BeatFleet:
            return stack.enter_context(BeatFleet(tmp_path, broker, **config))

        yield new


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    """Beats in this process, over an emptied Redis; they end with the test."""
    bench = Bench(redis_url)
    try:
        yield bench
    finally:
        bench.close()
