"""Who hears what happens in this process's elections: observers at once, signals a little later.

Receivers of signals are code of the app. They run in a thread of their own, so that renewals,
dispatches and tasks never wait for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from celery.utils.dispatch import Signal

from celery_leader import signals
from celery_leader.compat.celery import task_named
from celery_leader.core.events import (
    Deposed,
    DispatchRefused,
    Elected,
    Event,
    Followed,
    Forwarded,
    Observer,
    Skipped,
)

from .context import AppContext
from .log import get_logger

logger = get_logger(__name__)

_LAST_SIGNALS = 1.0  # seconds; how long the end of a process waits for receivers of signals
_MOST_WAITING = 1000


class Observers:
    """Tells observers of each event, and sends its signals."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._observers: list[Observer] = []
        self._signals = SignalDelivery()
        context.forks.call_in_child(self._after_fork)

    def add(self, observer: Observer) -> None:
        """Call ``observer`` with every event, in the thread in which it happens.

        It must return at once and do no I/O. Errors that it raises are logged.
        """
        self._observers.append(observer)

    def tell(self, event: Event) -> None:
        """Tell observers of ``event``, and have its signals sent; raises nothing."""
        for observer in list(self._observers):
            try:
                observer(event)
            except Exception:
                logger.exception("an observer failed on %s", event)
        app, task = self._context.app, getattr(event, "task", None)
        self._signals.send(event, app if task is None else task_named(app, task))

    def finish(self) -> None:
        """Before this process ends: wait a little for the receivers of signals."""
        if not self._signals.finish(_LAST_SIGNALS):
            logger.warning("receivers of signals are still busy; this process ends without them")

    def _after_fork(self, parent: int) -> None:
        self._signals = SignalDelivery()


class SignalDelivery:
    """Calls receivers of signals in one thread, in the order of the events."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Signal, Any, dict[str, Any]]] = deque()
        self._something = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropped = 0

    def send(self, event: Event, sender: Any) -> None:
        """Have the signals of ``event`` sent soon; returns at once."""
        for signal, arguments in _signals_of(event):
            if not signal.receivers:
                continue
            if len(self._waiting) >= _MOST_WAITING:
                self._drop(signal)
                continue
            self._waiting.append((signal, sender, arguments))
            self._start_once()
            self._something.set()

    def finish(self, timeout: float) -> bool:
        """Wait for the receivers; whether all were called in time."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._waiting.append((_Last(done), None, {}))
        self._something.set()
        return done.wait(timeout)

    def _start_once(self) -> None:
        # Events happen in several threads, and two deliveries would mix up their order.
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="leader-signals", daemon=True
                )
                self._thread.start()

    def _drop(self, signal: Signal) -> None:
        self._dropped += 1
        if self._dropped == 1:
            logger.warning(
                "the receivers of signals are too slow: %s is dropped, and so are later signals"
                " until the receivers have caught up",
                signal.name,
            )

    def _run(self) -> None:
        while True:
            self._something.wait()
            self._something.clear()
            while self._waiting:
                self._call(*self._waiting.popleft())
            if self._dropped:
                logger.warning("%d signal(s) were dropped", self._dropped)
                self._dropped = 0

    def _call(self, signal: Signal, sender: Any, arguments: dict[str, Any]) -> None:
        try:
            signal.send(sender=sender, **arguments)
        except BaseException:  # also SystemExit, which would end this thread
            logger.exception("a receiver of %s failed", signal.name)


def _signals_of(event: Event) -> Iterator[tuple[Signal, dict[str, Any]]]:
    """The signals that tell of ``event``, with their arguments."""
    arguments = {field.name: getattr(event, field.name) for field in fields(event)}
    match event:
        case Elected():
            yield signals.leader_elected, arguments
            yield signals.leader_changed, {**arguments, "leader": event.node}
        case Followed():
            yield signals.leader_changed, arguments
        case Deposed():
            yield signals.leader_deposed, {**arguments, "sudden": event.sudden}
        case DispatchRefused():
            yield signals.dispatch_refused, arguments
        case Forwarded():
            yield signals.task_forwarded, arguments
        case Skipped():
            yield signals.task_skipped, arguments


class _Last:
    """Stands last in the queue like a signal, and tells when its turn has come."""

    name = "the last one"

    def __init__(self, done: threading.Event) -> None:
        self._done = done

    def send(self, sender: Any) -> None:
        """All receivers before it were called."""
        self._done.set()
