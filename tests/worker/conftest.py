"""A leader-only task of an app without a broker, for tests of what a worker does with messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_leader import install, leader_only


@pytest.fixture(scope="module")
def task() -> Iterator[Any]:
    app = install(Celery("proj", broker="memory://", set_as_current=False))

    @app.task(shared=False)
    @leader_only
    def report() -> None: ...

    app.finalize()
    yield app.tasks[report.name]
    app.close()
