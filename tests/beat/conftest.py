"""Beats in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.local_beat import Bench


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    """Beats in this process, over an emptied Redis; they end with the test."""
    bench = Bench(redis_url)
    try:
        yield bench
    finally:
        bench.close()
