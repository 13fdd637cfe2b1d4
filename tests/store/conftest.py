"""Stores over memory and over real Redis."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from celery_leader.core.lease import LeaseStore
from tests.support.fake_store import FakeStore
from tests.support.fixtures import PREFIX, MakeStore


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.real),
        pytest.param("redis with a key prefix", marks=pytest.mark.real),
    ]
)
def store(request: pytest.FixtureRequest) -> LeaseStore:
    """Each kind of store there is."""
    if request.param == "memory":
        return FakeStore(time.time)
    make: MakeStore = request.getfixturevalue("make_store")
    return make(prefix=PREFIX if "prefix" in request.param else "")


@pytest.fixture
def wake() -> Iterator[Wake]:
    """A file descriptor that ends a wait for announcements."""
    pipe = Wake()
    yield pipe
    pipe.close()


class Wake:
    """The runner's pipe."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()

    def up(self) -> None:
        """Make ``fd`` readable."""
        os.write(self._write, b"!")

    def close(self) -> None:
        """Drop both ends."""
        os.close(self.fd)
        os.close(self._write)
