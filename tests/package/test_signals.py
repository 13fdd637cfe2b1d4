"""Signals: who is told what, and that receivers harm nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_leader import signals
from celery_leader.core.events import (
    Deposed,
    DispatchRefused,
    Elected,
    Forwarded,
    Skipped,
)
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.observers import SignalDelivery
from tests.support.waiting import PATIENCE, wait_until

ELECTED = Elected("worker", "a", 7)


@pytest.fixture
def received() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What was signalled, as ``(name, arguments)``; every signal has a receiver."""
    heard: list[tuple[str, dict[str, Any]]] = []
    receivers = {}
    for name in (
        "leader_elected",
        "leader_deposed",
        "leader_changed",
        "dispatch_refused",
        "task_forwarded",
        "task_skipped",
    ):

        def receive(signal: Any, name: str = name, **arguments: Any) -> None:
            heard.append((name, arguments))

        receivers[name] = receive
        getattr(signals, name).connect(receive)
    yield heard
    for name, receive in receivers.items():
        getattr(signals, name).disconnect(receive)


def test_a_receiver_gets_the_documented_arguments(received: list[Any]) -> None:
    app = Celery("signalled", broker="memory://", set_as_current=False)

    @app.task(name="proj.sweep", shared=False)
    def sweep() -> None: ...

    app.finalize()
    task = app.tasks["proj.sweep"]
    runtime = runtime_of(app)
    runtime.observers.tell(ELECTED)
    runtime.observers.tell(Deposed("worker", "a", 7, "expired", 2.5))
    runtime.observers.tell(DispatchRefused("beat", "b", 8, "every", "deposed"))
    runtime.observers.tell(Forwarded("worker", "a", "proj.sweep", "id-1", "celery.leader"))
    runtime.observers.tell(Skipped("worker", "a", "proj.sweep", "id-2", "receiver"))
    runtime.observers.finish()
    assert received == [
        ("leader_elected", {"sender": app, "election": "worker", "node": "a", "term": 7}),
        (
            "leader_changed",
            {"sender": app, "election": "worker", "node": "a", "term": 7, "leader": "a"},
        ),
        (
            "leader_deposed",
            {
                "sender": app,
                "election": "worker",
                "node": "a",
                "term": 7,
                "reason": "expired",
                "sudden": True,
                "led_for": 2.5,
            },
        ),
        (
            "dispatch_refused",
            {
                "sender": app,
                "election": "beat",
                "node": "b",
                "term": 8,
                "entry": "every",
                "reason": "deposed",
            },
        ),
        (
            "task_forwarded",
            {
                "sender": task,
                "election": "worker",
                "node": "a",
                "task": "proj.sweep",
                "task_id": "id-1",
                "queue": "celery.leader",
            },
        ),
        (
            "task_skipped",
            {
                "sender": task,
                "election": "worker",
                "node": "a",
                "task": "proj.sweep",
                "task_id": "id-2",
                "by": "receiver",
            },
        ),
    ]


def test_the_signals_arguments_are_those_they_declare(received: list[Any]) -> None:
    delivery = SignalDelivery()
    for event in (
        ELECTED,
        Deposed("worker", "a", 7, "expired", 2.5),
        DispatchRefused("beat", "b", 8, "every", "deposed"),
        Forwarded("worker", "a", "proj.sweep", "id-1", "celery.leader"),
        Skipped("worker", "a", "proj.sweep", "id-2", "receiver"),
    ):
        delivery.send(event, None)
    assert delivery.finish(PATIENCE)
    for name, arguments in received:
        assert set(arguments) - {"sender"} == getattr(signals, name).providing_args


@pytest.mark.parametrize("failure", [ValueError("a bug"), SystemExit(3), KeyboardInterrupt()])
def test_a_failing_receiver_harms_neither_the_teller_nor_other_signals(
    received: list[Any], failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise failure

    signals.leader_elected.connect(fail, weak=False, dispatch_uid="failing")
    try:
        delivery = SignalDelivery()
        delivery.send(ELECTED, None)
        delivery.send(DispatchRefused("beat", "b", 8, "every", "deposed"), None)
        assert delivery.finish(PATIENCE)
    finally:
        signals.leader_elected.disconnect(dispatch_uid="failing")
    assert "dispatch_refused" in [name for name, _ in received]
    assert type(failure).__name__ in caplog.text


def test_a_slow_receiver_holds_nobody_up_and_what_is_too_much_is_dropped_and_said_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on, called = threading.Event(), []

    def slow(**arguments: Any) -> None:
        called.append(arguments["term"])
        go_on.wait(PATIENCE)

    signals.leader_elected.connect(slow)
    try:
        delivery = SignalDelivery()
        for term in range(3000):
            delivery.send(Elected("worker", "a", term), None)
        assert not delivery.finish(0.01), "the receiver is still at the first"
        assert caplog.text.count("are too slow") == 1
        go_on.set()
        assert delivery.finish(PATIENCE)
        wait_until(lambda: "signal(s) were dropped" in caplog.text, what="the number dropped")
    finally:
        signals.leader_elected.disconnect(slow)
    assert called == sorted(called), "in order"
    assert 1000 <= len(called) < 3000


def test_two_first_events_at_once_start_one_thread(
    received: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, started = threading.Barrier(2), []

    class Thread(threading.Thread):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.5)  # the other teller would make its thread now

        def start(self) -> None:
            started.append(self)
            super().start()

    delivery = SignalDelivery()
    tellers = [threading.Thread(target=delivery.send, args=(ELECTED, None)) for _ in range(2)]
    kept = SimpleNamespace(Thread=Thread, Event=threading.Event)
    monkeypatch.setattr("celery_leader.runtime.observers.threading", kept)
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join(PATIENCE)
    assert delivery.finish(PATIENCE)
    assert len(started) == 1
    assert [name for name, _ in received].count("leader_elected") == 2


def test_signals_without_receivers_start_no_thread() -> None:
    before = threading.active_count()
    delivery = SignalDelivery()
    delivery.send(ELECTED, None)
    assert delivery.finish(0.0)
    assert threading.active_count() == before


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_calls_receivers_too(received: list[Any]) -> None:
    app = Celery("forked", broker="memory://", set_as_current=False)
    runtime = runtime_of(app)
    runtime.observers.tell(ELECTED)
    runtime.observers.finish()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        received.clear()
        runtime.observers.tell(Elected("worker", "child", 8))
        runtime.observers.finish()
        os.write(write, repr([arguments["node"] for _, arguments in received]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"['child', 'child']", (
        "that it is elected, and that the leader changed"
    )
    os.close(read)
    os.close(write)
