"""The gates that a worker has for a leader-only message, beside real workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import TaskRevokedError
from celery.worker.request import Request

from celery_leader import install, leader_only
from celery_leader.tasks.admission import Admission
from celery_leader.worker import message_guard
from celery_leader.worker.message_guard import LeaderOnlyRequest, leader_strategy


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("proj", broker="memory://", set_as_current=False)
    yield app
    app.close()


def test_a_request_asks_whether_it_may_start_before_it_can_be_acknowledged(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[str] = []

    class OfWorker(message_guard.LeaderOnlyRequest):
        """As Celery makes one for each worker."""

        def execute_using_pool(self, *_: object) -> None:
            went.append("to the pool")

        def leave_to_leader(self) -> None:
            went.append("to the leader")

    request = OfWorker.__new__(OfWorker)
    request.id, request._app, request._task = "mine", task.app, task
    request._args, request._kwargs = (), {}
    admit(monkeypatch, leads=False)
    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(None)
    admit(monkeypatch, leads=True)
    request.execute_using_pool(None)
    assert went == ["to the leader", "to the pool"]


def admit(monkeypatch: pytest.MonkeyPatch, *, leads: bool) -> None:
    here = Admission(leads, steps_down=False, shuts_down=False)
    monkeypatch.setattr(message_guard, "admission", lambda *_: here)


def test_a_task_keeps_a_request_class_of_its_own(app: Celery) -> None:
    class CountedRequest(Request):
        pass

    class Counted(Task):
        abstract = True
        Request = CountedRequest

    install(app)

    @leader_only
    @app.task(base=Counted, name="proj.counted", shared=False)
    def counted() -> None: ...

    app.finalize()
    task = app.tasks["proj.counted"]

    class Strategy:
        """Stands for Celery's own, which wants a whole worker."""

        def __new__(cls, *args: Any) -> Any:
            return lambda *_: None

    task.__class__.own_strategy = Strategy
    leader_strategy(task, app, None)
    made = task.__class__.Request
    assert issubclass(made, LeaderOnlyRequest)
    assert issubclass(made, CountedRequest)
