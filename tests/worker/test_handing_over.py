"""What becomes of a message on its way to the leader queue, and of a task's own request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task
from celery.worker.request import Request
from kombu import Connection, Queue

from celery_leader import install, leader_only
from celery_leader.worker.handing_over import publish_again
from celery_leader.worker.message_guard import LeaderOnlyRequest, leader_strategy

BACK = Queue("celery.leader", routing_key="celery.leader")


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
