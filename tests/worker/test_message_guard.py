"""The order in which a message is handed over and acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from celery_leader import install, leader_only
from celery_leader.runtime.leadership import leadership_of
from celery_leader.tasks.admission import Admission, NotLeading
from celery_leader.worker import handing_over, message_guard
from celery_leader.worker.handing_over import Stray, hand_over, hand_over_kept, hand_over_later
from celery_leader.worker.state import WorkerState, worker_state


@pytest.fixture(scope="module")
def task() -> Iterator[Any]:
    app = install(Celery("proj", broker="memory://", set_as_current=False))

    @app.task
    @leader_only
    def report() -> None: ...

    app.finalize()
    yield app.tasks[report.name]
    app.close()


def stray(task: Any, message: Any = None, acknowledge: Any = lambda: None, **more: Any) -> Stray:
    return Stray(task.app, "worker", task.name, message or Message(), acknowledge, **more)


class Message:
    """One that was received over ``channel``."""

    def __init__(self, channel: object = None) -> None:
        self.channel = channel
        self.headers = {"id": "mine"}


def test_a_message_is_acknowledged_after_it_was_handed_over(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(handing_over, "_pass_on", lambda *_: done.append("handed over"))
    hand_over(stray(task, acknowledge=lambda: done.append("acknowledged")))
    assert done == ["handed over", "acknowledged"]


def test_a_message_that_cannot_be_handed_over_is_not_acknowledged(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("gone")

    done: list[str] = []
    monkeypatch.setattr(handing_over, "_pass_on", refuse)
    with pytest.raises(ConnectionError):
        hand_over(stray(task, acknowledge=lambda: done.append("acknowledged")))
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

    def connect(self, channel: object) -> None:
        self.task_consumer = Consumer()
        self.task_consumer.channel = channel


class Acknowledged:
    """Stands for a request whose message the broker has forgotten."""

    acknowledged = True


@pytest.fixture
def state(task: Any) -> Iterator[WorkerState]:
    state = worker_state(task.app)
    state.consumer = Consumer()
    yield state
    state.consumer = None
    state.kept.clear()


@pytest.fixture
def consumer(state: WorkerState) -> Consumer:
    found: Consumer = state.consumer
    return found


def test_what_was_acknowledged_and_cannot_be_handed_over_is_handed_over_after_the_reconnect(
    task: Any, consumer: Consumer, state: WorkerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[object] = []

    def pass_on(*_: object) -> None:
        if consumer.task_consumer is None:
            raise ConnectionError("gone")
        handed.append("over")

    monkeypatch.setattr(handing_over, "_pass_on", pass_on)
    with pytest.raises(ConnectionError):
        hand_over(stray(task, Message("before"), request=Acknowledged()))
    consumer.ring()  # while there is no connection
    assert handed == []
    consumer.connect("after")
    consumer.ring()
    assert handed == ["over"]
    assert state.kept == {}


def test_what_is_delivered_again_is_not_handed_over_twice(
    task: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[object] = []

    def full(*_: object) -> None:
        handed.append("tried")
        raise RuntimeError("a full Redis")

    monkeypatch.setattr(handing_over, "_pass_on", full)
    hand_over(stray(task, Message("before")))
    consumer.connect("after")
    consumer.ring()
    assert handed == ["tried"]


def test_an_unknown_task_is_put_back_over_the_connection_that_it_came_on_or_not_at_all(
    task: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back: list[object] = []
    monkeypatch.setattr(
        handing_over, "publish_again", lambda app, message, *_: put_back.append(message)
    )
    consumer.connect("now")
    here, before = Message("now"), Message("before")
    for message in (here, before):
        hand_over_later(stray(task, message, unknown=True))
    assert put_back == [], "not at once"
    consumer.ring()
    assert put_back == [here]


def test_what_no_try_can_hand_over_is_refused_after_a_few(
    task: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def never(*_: object) -> None:
        done.append("tried")
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(handing_over, "_pass_on", never)
    consumer.connect("now")
    hand_over(stray(task, Message("now"), lambda: done.append("acknowledged")))
    for _ in range(10):
        consumer.ring()
    assert done == ["tried", "tried", "tried", "acknowledged"]


def test_at_the_end_a_broker_that_is_away_is_waited_for_once_and_not_for_each_message(
    task: Any, state: WorkerState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[str] = []

    class Away:
        """Stands for a producer whose broker is away, and for its pool."""

        def acquire(self, block: bool) -> Away:
            return self

        def __enter__(self) -> Away:
            return self

        def __exit__(self, *_: object) -> None: ...

        @property
        def connection(self) -> Away:
            return self

        def ensure_connection(self, **_: object) -> None:
            waits.append("waited")
            raise ConnectionError("away")

    monkeypatch.setattr(type(task.app), "producer_pool", Away())
    for _ in range(3):
        kept = stray(task, request=Acknowledged())
        state.kept[id(kept.message)] = kept
    hand_over_kept(state)
    assert waits == ["waited"]
    assert caplog.text.count("is lost, since it cannot be handed over: away") == 3
    assert state.kept == {}


def test_at_the_end_what_only_this_worker_has_is_handed_over(
    task: Any, state: WorkerState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handed: list[Stray] = []

    def pass_on(each: Stray, producer: object) -> None:
        if each is bad:
            raise ValueError("bad")
        handed.append(each)

    monkeypatch.setattr(handing_over, "_pass_on", pass_on)
    bad, good = (stray(task, request=Acknowledged()) for _ in range(2))
    unacknowledged = stray(task)
    for each in (bad, good, unacknowledged):
        state.kept[id(each.message)] = each
    hand_over_kept(state)
    assert handed == [good]
    assert caplog.text.count("is lost") == 1


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
    here = Admission(leads, gives_way=False, shuts_down=False)
    monkeypatch.setattr(message_guard, "admission", lambda *_: here)


@pytest.mark.parametrize(
    ("here", "takes", "starts", "skips"),
    [
        (Admission(leads=True, gives_way=False, shuts_down=False), True, True, True),
        (Admission(leads=True, gives_way=True, shuts_down=False), False, True, False),
        (Admission(leads=True, gives_way=False, shuts_down=True), True, False, False),
        (Admission(leads=False, gives_way=False, shuts_down=False), False, False, True),
        (Admission(leads=False, gives_way=True, shuts_down=True), False, False, False),
    ],
)
def test_a_worker_takes_starts_and_skips_by_what_it_leads_and_whether_it_leaves(
    here: Admission, takes: bool, starts: bool, skips: bool
) -> None:
    assert (here.takes, here.starts, here.skips) == (takes, starts, skips)


def test_no_body_starts_once_the_shutdown_of_its_worker_has_begun() -> None:
    app = install(Celery("going", broker="redis://127.0.0.1:1", set_as_current=False))

    @app.task
    @leader_only
    def last() -> None: ...

    app.finalize()
    task = app.tasks[last.name]
    leadership = leadership_of(app)
    leadership.beliefs.reserve(["worker"])  # as a worker does before its pool starts
    leadership.beliefs._reserved["worker"].publish(7, float("inf"))
    leadership.beliefs._own["worker"] = (leadership.beliefs._reserved["worker"],)
    task.before_start("id", (), {})
    leadership.beliefs.announce_shutdown()
    with pytest.raises(NotLeading):
        task.before_start("id", (), {})
    app.close()
