"""Fleets that are watched, asked and made to hang."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.conftest import own_redis as own_redis
from tests.fleet.conftest import pytest_runtest_makereport as pytest_runtest_makereport
from tests.fleet.fleet import Fleet, Process
from tests.operations.proj import SIGNALLED
from tests.waiting import wait_until


class OperatedProcess(Process):
    """A process of ``tests.operations.proj``."""

    app = "tests.operations.proj"


class OperatedFleet(Fleet):
    """A fleet of ``tests.operations.proj``."""

    process = OperatedProcess

    def monitor(self) -> Process:
        """``celery events --dump``, which has begun to listen."""
        dump = self._start("dump", "", ("events", "--dump"), {})
        self.is_listened_to()
        return dump

    def is_listened_to(self) -> None:
        """Wait until somebody listens to the event stream; only workers with gossip do, too."""
        wait_until(self.redis.pubsub_numpat, what="somebody to listen to events")

    def flower(self, port: int) -> Process:
        """A Flower that serves on ``port``."""
        options = ("--address=127.0.0.1", f"--port={port}", "--inspect_timeout=1000")
        return self._start("flower", "", ("flower", *options), {})

    def wait_without_leader(self) -> None:
        """Wait until the lease of the one that leads has run out."""
        record = self.record()
        wait_until(lambda: not self._still_runs(record), what="the lease to run out")

    def signalled(self, name: str, **arguments: Any) -> list[dict[str, Any]]:
        """Wait until a signal of ``name`` with ``arguments`` was received; all of them."""

        def told() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in self.redis.lrange(SIGNALLED, 0, -1)]
            return [
                line
                for line in lines
                if line["signal"] == name and arguments.items() <= line.items()
            ]

        return wait_until(told, what=f"the signal {name} with {arguments}")


NewFleet = Callable[..., OperatedFleet]


@pytest.fixture
def new_fleet(redis_url: str, tmp_path: Path) -> Iterator[NewFleet]:
    """Makes fleets over an emptied Redis; their processes end with the test."""
    with ExitStack() as stack:

        def new(broker: str = redis_url, **config: Any) -> OperatedFleet:
            return stack.enter_context(OperatedFleet(tmp_path, broker, **config))

        yield new


@pytest.fixture
def fleet(new_fleet: NewFleet) -> OperatedFleet:
    """A fleet over an emptied Redis."""
    return new_fleet()
