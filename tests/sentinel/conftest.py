"""Fleets and elections over a Redis with replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.conftest import new_fleet as new_fleet
from tests.fleet.conftest import own_redis as own_redis
from tests.fleet.conftest import pytest_runtest_makereport as pytest_runtest_makereport
from tests.sentinel.watched import Watched
from tests.store.conftest import make_app as make_app
from tests.store.conftest import make_store as make_store


@pytest.fixture
def watched(redis_binary_or_skip: str, tmp_path: Path) -> Iterator[Watched]:
    """A master with two replicas, and three Sentinels that watch them."""
    watched = Watched(redis_binary_or_skip, tmp_path)
    try:
        yield watched.start()
    finally:
        watched.close()
