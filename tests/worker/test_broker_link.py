"""Whether a broker answers, and what a worker's link makes of that."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_leader.core.watchdog import BrokerHeartbeat
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.clock import now
from celery_leader.worker import broker_link
from celery_leader.worker.broker_link import WorkerLink, answers, link_of
from tests.support.waiting import wait_until


@contextlib.contextmanager
def server(reply: bytes | None) -> Iterator[int]:
    """Its port: it answers each command with ``reply``, or never."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                held.append(connection)
                while said := connection.recv(1024):
                    connection.sendall((reply or b"") * said.count(b"*"))

        if reply is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        for each in held:
            each.close()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_silent_or_not_there_does_not_answer(scheme: str) -> None:
    with server(None) as port:
        app = Celery(broker=f"{scheme}://127.0.0.1:{port}//", set_as_current=False)
        assert not answers(app, 0.3)
    assert not answers(app, 0.3)


@pytest.mark.parametrize("reply", [b"+PONG\r\n", b"-NOPERM no\r\n", b"-NOAUTH no\r\n"])
def test_a_refusal_is_an_answer(reply: bytes) -> None:
    with server(reply) as port:
        assert answers(Celery(broker=f"redis://127.0.0.1:{port}", set_as_current=False), 5.0)


class Consumer(SimpleNamespace):
    """What a link looks at of a worker's consumer."""

    def __init__(self, driver: str = "redis") -> None:
        transport = SimpleNamespace(driver_type=driver)
        super().__init__(app=None, connection=SimpleNamespace(transport=transport))


def link(asks_every: float | None = None, needed: bool = True) -> WorkerLink:
    return WorkerLink(BrokerHeartbeat(15.0), asks_every, lambda: needed)


def test_a_lost_connection_counts_until_there_is_another() -> None:
    worker = link()
    worker.connected(Consumer())
    assert not worker.heartbeat.awaited
    worker.lost()
    assert worker.heartbeat.awaited
    worker.connected(Consumer())
    assert not worker.heartbeat.awaited


def test_in_a_shutdown_nothing_counts() -> None:
    worker = link()
    worker.connected(Consumer())
    worker.lost()
    worker.end()
    assert not worker.heartbeat.awaited
    worker.lost()
    assert not worker.heartbeat.awaited


def asked(monkeypatch: pytest.MonkeyPatch, answer: bool) -> list[float]:
    """When the broker was asked; it answers so."""
    moments: list[float] = []

    def answering(app: Any, timeout: float) -> bool:
        moments.append(now())
        return answer

    monkeypatch.setattr(broker_link, "answers", answering)
    return moments


@pytest.mark.parametrize("answer", [True, False])
def test_a_leader_asks_its_broker_now_and_then(
    monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    moments = asked(monkeypatch, answer)
    worker = link(0.02)
    worker.connected(Consumer())
    wait_until(lambda: len(moments) > 3, what="it to ask")
    wait_until(lambda: worker.heartbeat.awaited is not answer, what="the answer to count")
    worker.end()


def test_a_question_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []

    def failing_once(app: Any, timeout: float) -> bool:
        tries.append(now())
        if len(tries) == 1:
            raise ValueError("nobody has thought of this")
        return True

    monkeypatch.setattr(broker_link, "answers", failing_once)
    worker = link(0.02)
    worker.connected(Consumer())
    wait_until(lambda: len(tries) > 1, what="it to ask again")
    wait_until(lambda: not worker.heartbeat.awaited, what="the answer to count")
    worker.end()


def test_neither_a_follower_asks_nor_who_is_not_connected_nor_another_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = asked(monkeypatch, True)
    follower, lost, other = link(0.01, needed=False), link(0.01), link(0.01)
    follower.connected(Consumer())
    lost.connected(Consumer())
    lost.lost()
    other.connected(Consumer("sqs"))
    before = len(moments)
    threading.Event().wait(0.2)
    assert len(moments) <= before + 1
    for each in (follower, lost, other):
        each.end()


@pytest.mark.parametrize(
    ("conf", "asks"),
    [
        ({}, False),
        ({"leader_url": "redis://leases"}, True),
        ({"broker_write_url": "redis://elsewhere"}, True),
    ],
)
def test_the_broker_is_asked_where_the_leases_are_not_on_it(
    conf: dict[str, str], asks: bool
) -> None:
    app = Celery(broker="redis://broker", set_as_current=False)
    app.conf.update(conf)
    worker = link_of(runtime_of(app))
    assert (worker._asks_every is not None) == asks
