"""The order in which a message is handed over and acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_leader import install, leader_only, receive
from celery_leader.app import leadership_of
from celery_leader.tasks import NotLeading, options_of


@pytest.fixture(scope="module")
def task() -> Iterator[Any]:
    app = install(Celery("proj", broker="memory://", set_as_current=False))

    @app.task
    @leader_only
    def report() -> None: ...

    app.finalize()
    yield app.tasks[report.name]
    app.close()


def test_a_message_is_acknowledged_after_it_was_handed_over(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(receive, "hand_over", lambda *_: done.append("handed over"))
    receive.hand_over_or_retry(
        task, options_of(task), object(), None, lambda: done.append("acknowledged")
    )
    assert done == ["handed over", "acknowledged"]


def test_a_message_that_cannot_be_handed_over_is_not_acknowledged(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("gone")

    done: list[str] = []
    monkeypatch.setattr(receive, "hand_over", refuse)
    with pytest.raises(ConnectionError):
        receive.hand_over_or_retry(
            task, options_of(task), object(), None, lambda: done.append("acknowledged")
        )
    assert not done


def test_no_body_starts_once_the_shutdown_of_its_worker_has_begun() -> None:
    app = install(Celery("going", broker="redis://127.0.0.1:1", set_as_current=False))

    @app.task
    @leader_only
    def last() -> None: ...

    app.finalize()
    task = app.tasks[last.name]
    leadership = leadership_of(app)
    leadership.allot(["worker"])  # as a worker does before its pool starts
    leadership._allotted["worker"].publish(7, float("inf"))
    leadership._beliefs["worker"] = (leadership._allotted["worker"],)
    task.before_start("id", (), {})
    leadership.shut()
    with pytest.raises(NotLeading):
        task.before_start("id", (), {})
    app.close()
