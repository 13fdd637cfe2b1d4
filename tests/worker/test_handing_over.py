"""A message on its way to the leader queue: when it is acknowledged, and how it arrives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Queue

from celery_leader.worker import handing_over
from celery_leader.worker.handing_over import (
    Stray,
    hand_over,
    hand_over_kept,
    hand_over_later,
    publish_again,
)
from celery_leader.worker.state import WorkerState, worker_state

BACK = Queue("celery.leader", routing_key="celery.leader")


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


def test_what_celery_forgets_when_it_loses_its_connection_is_handed_over_all_the_same(
    task: Any, consumer: Consumer, state: WorkerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[object] = []
    monkeypatch.setattr(handing_over, "_pass_on", lambda *_: handed.append("over"))
    hand_over_later(stray(task, Message("before"), request=Acknowledged()))
    consumer.timed.clear()  # as Celery before 5.7 does
    consumer.connect("after")
    handing_over.connected(state)
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
        hand_over_later(stray(task, message, back_to=BACK))
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


# -- how it arrives ---------------------------------------------------------------------


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("proj", broker="memory://", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def connection() -> Iterator[Connection]:
    with Connection("memory://") as connection:
        yield connection


def handed_over(
    app: Celery, connection: Connection, properties: Any = None, **published: Any
) -> Any:
    """A message as the leader queue has it, once a follower has put it there."""
    channel = connection.default_channel
    astray = Queue("astray", routing_key="astray", channel=channel)
    astray.declare()
    connection.Producer().publish({"x": 1}, routing_key="astray", serializer="json", **published)
    message = astray.get()
    message.properties.update(properties or {})
    publish_again(app, message, BACK)
    return Queue("celery.leader", channel=channel).get()


@pytest.mark.parametrize("hops", ["many", [], {}, None, "", "3x"])
def test_hops_that_are_no_number_count_for_nothing(
    app: Celery, connection: Connection, hops: Any
) -> None:
    message = handed_over(app, connection, headers={"leader_hops": hops})
    assert message.headers["leader_hops"] == 1
    assert message.payload == {"x": 1}


def test_hops_are_counted(app: Celery, connection: Connection) -> None:
    assert handed_over(app, connection, headers={"leader_hops": 3}).headers["leader_hops"] == 4


@pytest.mark.parametrize("hops", [float("inf"), float("nan"), -1, "9" * 400, 10**400])
def test_hops_that_nobody_can_have_counted_count_for_nothing(
    app: Celery, connection: Connection, hops: Any
) -> None:
    assert handed_over(app, connection, headers={"leader_hops": hops}).headers["leader_hops"] == 1


@pytest.mark.parametrize(
    "wrong", [float("inf"), float("nan"), "9" * 400, -1, "-5", [], {}, "", "x"]
)
@pytest.mark.parametrize("name", ["expiration", "priority", "delivery_mode"])
def test_a_property_that_no_sender_can_mean_is_dropped(
    app: Celery, connection: Connection, name: str, wrong: Any
) -> None:
    message = handed_over(app, connection, properties={name: wrong})
    assert message.properties.get(name) in (None, 0, 2)  # 0 and 2 are what kombu then takes
    assert message.payload == {"x": 1}


@pytest.mark.parametrize("name", ["exchange", "routing_key", "declare", "retry", "serializer"])
def test_a_property_called_as_an_argument_of_sending_is_none(
    app: Celery, connection: Connection, name: str
) -> None:
    message = handed_over(app, connection, properties={name: "x", "message_id": "mine"})
    assert message.properties["message_id"] == "mine"
    assert message.payload == {"x": 1}


def test_an_expiry_is_kept_and_one_that_is_no_number_dropped(
    app: Celery, connection: Connection
) -> None:
    assert handed_over(app, connection, expiration=60).properties["expiration"] == "60000"
    message = handed_over(app, connection, properties={"expiration": "soon"})
    assert "expiration" not in message.properties
