"""What becomes of a leader-only message whose task this worker does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Queue
from kombu.common import QoS

from celery_leader import install
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.worker import unknown_tasks
from celery_leader.worker.state import worker_state
from celery_leader.worker.unknown_tasks import UnknownTasks

NOW = 1_800_000_000
DAY = 86400


class Worker:
    """Stands for a worker that receives messages of unknown tasks, and for its timer."""

    connection_errors = (ConnectionError,)

    def __init__(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.app, self.timer = app, self
        self.connection = app.connection()
        self.channel = object()
        self.task_consumer = SimpleNamespace(
            channel=self.channel, _active_tags={}, queues=[Queue("celery")]
        )
        self.qos = QoS(lambda **_: None, 4)
        self.timed: list[tuple[float, Callable[[], None]]] = []
        self.handed_over: list[Any] = []
        self.discarded: list[Any] = []
        self.moment = NOW
        monkeypatch.setattr(unknown_tasks, "hand_over", self.handed_over.append)
        monkeypatch.setattr(unknown_tasks, "wall_clock", lambda: self.moment)
        monkeypatch.setattr(unknown_tasks, "is_fetched", lambda _: False)
        monkeypatch.setattr(unknown_tasks, "keep_unknown", self._take_over)
        worker_state(app).consumer = self
        self.tasks = UnknownTasks(runtime_of(app), worker_state(app))
        self.tasks.connected(self)

    def _take_over(self, _: Any, handle: Callable[..., Any]) -> None:
        self.handle = handle

    def call_after(self, seconds: float, act: Callable[[], None]) -> None:
        self.timed.append((seconds, act))

    def receives(self, queue: str = "celery.leader", name: str = "new", **headers: Any) -> Any:
        message = SimpleNamespace(
            channel=self.channel,
            headers=headers,
            delivery_info={"exchange": "", "routing_key": queue},
            ack_log_error=lambda *_: None,
        )
        self.handle(lambda: self.discarded.append(message), name, message)
        return message

    def waits(self) -> float:
        """The seconds for which the last message is held, which then are over."""
        seconds, act = self.timed.pop()
        act()
        return seconds


@pytest.fixture
def app() -> Iterator[Celery]:
    app = install(Celery("proj", broker="memory://", set_as_current=False))
    yield app
    worker_state(app).consumer = None
    app.close()


@pytest.fixture
def worker(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(app, monkeypatch)


def test_an_ordinary_message_is_discarded_as_celery_does(worker: Worker) -> None:
    message = worker.receives("celery")
    assert worker.discarded == [message]
    assert worker.handed_over == []


@pytest.mark.parametrize("election", [None, 1, ["worker"], {}])
def test_a_header_that_names_no_election_is_none(worker: Worker, election: Any) -> None:
    worker.receives("celery", leader_only=election)
    assert len(worker.discarded) == 1


def test_a_message_from_the_leader_queue_is_held_and_then_put_back_there(worker: Worker) -> None:
    message = worker.receives()
    assert worker.handed_over == [], "not at once"
    assert worker.waits() == 1.0
    (stray,) = worker.handed_over
    assert (stray.message, stray.back_to.name) == (message, "celery.leader")
    assert message.headers["leader_unknown_since"] == NOW


def test_a_leader_only_message_from_another_queue_is_handed_to_the_leader_queue(
    worker: Worker,
) -> None:
    worker.receives("celery", leader_only="worker")
    (stray,) = worker.handed_over
    assert (stray.election, stray.back_to) == ("worker", None)


def test_one_of_an_election_that_is_unknown_too_is_put_back_into_its_own_queue(
    worker: Worker,
) -> None:
    worker.receives("celery", leader_only="nightly")
    worker.waits()
    (stray,) = worker.handed_over
    assert stray.back_to.name == "celery"


def test_what_is_unknown_for_longer_is_held_for_longer_but_not_for_ever(worker: Worker) -> None:
    held = []
    for age in (0, 1, 3, 9, 1000):
        worker.receives(leader_unknown_since=NOW - age)
        held.append(worker.waits())
    assert held == [1, 1, 3, 9, 10]


def test_it_is_kept_for_as_long_as_the_setting_says_since_it_was_first_seen(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    first = worker.receives()
    since = first.headers["leader_unknown_since"]
    worker.moment = NOW + DAY - 1
    worker.receives(leader_unknown_since=since)
    assert worker.discarded == []
    worker.moment = NOW + DAY
    for _ in range(2):
        worker.receives(leader_unknown_since=since)
    assert len(worker.discarded) == 2
    assert caplog.text.count("is discarded, since for 86400 s") == 1


@pytest.mark.parametrize("since", [NOW + 1000, -1, 0, "yesterday", None, [], 1.5, 10**30])
def test_a_moment_that_cannot_be_is_counted_anew(worker: Worker, since: Any) -> None:
    message = worker.receives(leader_unknown_since=since)
    assert worker.discarded == []
    assert message.headers["leader_unknown_since"] == NOW


def test_each_task_is_named_once_however_many_messages_it_has(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "other"):
        for _ in range(20):
            worker.receives(name=name)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_a_message_that_is_held_takes_no_place_in_the_prefetch(worker: Worker) -> None:
    for _ in range(10):
        worker.receives()
    assert worker.qos.value == 14
    while worker.timed:
        worker.waits()
    assert worker.qos.value == 4


def test_so_many_that_memory_could_fill_do_take_a_place(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_tasks, "_MOST", 5)
    for _ in range(10):
        worker.receives()
    assert worker.qos.value == 9
    while worker.timed:
        worker.waits()
    assert worker.qos.value == 4


def test_a_limit_of_the_prefetch_is_not_undercut_afterwards(worker: Worker) -> None:
    worker.qos.max_prefetch = 6
    for _ in range(10):
        worker.receives()
    while worker.timed:
        worker.waits()
    assert worker.qos.value == 4


def test_what_was_held_when_the_connection_broke_is_left_to_the_broker(worker: Worker) -> None:
    worker.receives()
    worker.tasks.connected(worker)
    worker.waits()
    worker.receives()
    worker.task_consumer.channel = object()
    worker.waits()
    assert worker.handed_over == []


def test_a_shutdown_puts_everything_back_at_once(worker: Worker) -> None:
    messages = [worker.receives() for _ in range(3)]
    worker.tasks.put_back_all()
    assert [stray.message for stray in worker.handed_over] == messages
    while worker.timed:
        worker.waits()
    assert len(worker.handed_over) == 3
