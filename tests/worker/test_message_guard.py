"""The order in which a message is handed over and acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from celery_leader import install, leader_only
from celery_leader.runtime.leadership import leadership_of
from celery_leader.tasks.leader_only import NotLeading, options_of
from celery_leader.worker import message_guard as receive


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


class Consumer:
    """Stands for a worker's consumer, whose timer rings when the test says so."""

    connection_errors = (ConnectionError,)
    channel_errors = ()
    task_consumer: Any = None

    def __init__(self) -> None:
        self.timer = self
        self.timed: list[Any] = []

    def call_after(self, _: float, act: Any) -> None:
        self.timed.append(act)

    def ring(self) -> None:
        timed, self.timed = self.timed, []
        for act in timed:
            act()


class Message:
    """One that was received over ``channel``."""

    def __init__(self, channel: object) -> None:
        self.channel = channel
        self.headers = {"id": "mine"}


class Acknowledged:
    """Stands for a request whose message the broker has forgotten."""

    acknowledged = True


@pytest.fixture
def consumer(task: Any) -> Iterator[Consumer]:
    receive.consumers[task.app] = consumer = Consumer()
    yield consumer
    del receive.consumers[task.app]
    receive._kept.clear()


def test_what_was_acknowledged_and_cannot_be_handed_over_is_handed_over_after_the_reconnect(
    task: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[object] = []

    def hand_over(*_: object) -> None:
        if consumer.task_consumer is None:
            raise ConnectionError("gone")
        handed.append("over")

    monkeypatch.setattr(receive, "hand_over", hand_over)
    request, message = Acknowledged(), Message("before")
    with pytest.raises(ConnectionError):
        receive.hand_over_or_retry(task, options_of(task), message, request, lambda: None)
    consumer.ring()  # while there is no connection
    assert handed == []
    consumer.task_consumer = Consumer()
    consumer.task_consumer.channel = "after"
    consumer.ring()
    assert handed == ["over"]
    assert receive._kept == {}


def test_what_is_delivered_again_is_not_handed_over_twice(
    task: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[object] = []

    def full(*_: object) -> None:
        handed.append("tried")
        raise RuntimeError("a full Redis")

    monkeypatch.setattr(receive, "hand_over", full)
    receive.hand_over_or_retry(task, options_of(task), Message("before"), None, lambda: None)
    consumer.task_consumer = Consumer()
    consumer.task_consumer.channel = "after"
    consumer.ring()
    assert handed == ["tried"]


def test_what_no_try_can_hand_over_is_refused_after_a_few(
    task: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def never(*_: object) -> None:
        done.append("tried")
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(receive, "hand_over", never)
    consumer.task_consumer = Consumer()
    consumer.task_consumer.channel = "now"
    receive.hand_over_or_retry(
        task, options_of(task), Message("now"), None, lambda: done.append("acknowledged")
    )
    for _ in range(10):
        consumer.ring()
    assert done == ["tried", "tried", "tried", "acknowledged"]


def test_a_request_asks_whether_it_may_start_before_it_can_be_acknowledged(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[str] = []

    class OfWorker(receive.LeaderOnlyRequest):
        """As Celery makes one for each worker."""

        def execute_using_pool(self, *_: object) -> None:
            went.append("to the pool")

        def leave_to_leader(self) -> None:
            went.append("to the leader")

    request = OfWorker.__new__(OfWorker)
    request.id, request._app, request._task = "mine", task.app, task
    request._args, request._kwargs = (), {}
    monkeypatch.setattr(receive, "starts", lambda *_: False)
    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(None)
    monkeypatch.setattr(receive, "starts", lambda *_: True)
    request.execute_using_pool(None)
    assert went == ["to the leader", "to the pool"]


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
