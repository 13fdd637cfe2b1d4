"""Fleets and elections over a Redis with replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sentinel.watched import Watched


@pytest.fixture
def watched(redis_binary_or_skip: str, tmp_path: Path) -> Iterator[Watched]:
    """A master with two replicas, and three Sentinels that watch them."""
    watched = Watched(redis_binary_or_skip, tmp_path)
    try:
        yield watched.start()
    finally:
        watched.close()
