"""Signals of leader elections, for an app's own code.

Receivers run in the process where it happened, one after another, in a thread of this
package's own: however slow they are and whatever they raise, renewals, dispatches and tasks
go on. So a signal tells what *has* happened, a little later. Nothing may be decided or
fenced by it: ask ``is_leader()``. Where receivers fall far behind, further signals are
dropped, and the log says so.

All take ``**kwargs``: later versions may add arguments. ``sender`` is the app, or the task
for ``task_forwarded`` and ``task_skipped``; ``node`` is the candidate of this process that
the signal is about.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import fields
from typing import Any

from celery.utils.dispatch import Signal

from .core.events import (
    DispatchRefused,
    Event,
    Forwarded,
    LeaderChanged,
    LeaderDeposed,
    LeaderElected,
    Skipped,
)

logger = logging.getLogger(__name__)

leader_elected = Signal(name="leader_elected", providing_args={"election", "node", "term"})

leader_deposed = Signal(
    name="leader_deposed",
    providing_args={"election", "node", "term", "reason", "sudden", "led_for"},
)

leader_changed = Signal(
    name="leader_changed", providing_args={"election", "node", "term", "leader"}
)

dispatch_refused = Signal(
    name="dispatch_refused", providing_args={"election", "node", "term", "entry", "reason"}
)

task_forwarded = Signal(
    name="task_forwarded", providing_args={"election", "node", "task", "task_id", "queue"}
)

task_skipped = Signal(
    name="task_skipped", providing_args={"election", "node", "task", "task_id", "by"}
)

_SIGNALS: dict[type[Event], Signal] = {
    LeaderElected: leader_elected,
    LeaderDeposed: leader_deposed,
    LeaderChanged: leader_changed,
    DispatchRefused: dispatch_refused,
    Forwarded: task_forwarded,
    Skipped: task_skipped,
}

_MOST_WAITING = 1000


class Delivery:
    """Has receivers run in a thread of their own, in the order of what happened."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Signal, Any, dict[str, Any]]] = deque()
        self._something = threading.Event()
        self._thread: threading.Thread | None = None
        self._dropped = 0

    def send(self, event: Event, sender: Any) -> None:
        """Have the receivers of the signal of ``event`` called, soon; returns at once."""
        signal = _SIGNALS.get(type(event))
        if signal is None or not signal.receivers:
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._drop(signal)
            return
        self._waiting.append((signal, sender, _arguments(event)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="leader-signals", daemon=True)
            self._thread.start()
        self._something.set()

    def finish(self, timeout: float) -> bool:
        """Before a process ends: wait for the receivers; whether all were called in time."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._waiting.append((_Last(done), None, {}))
        self._something.set()
        return done.wait(timeout)

    def _drop(self, signal: Signal) -> None:
        self._dropped += 1
        if self._dropped == 1:
            logger.warning(
                "the receivers of signals are too slow: %s is dropped, and what follows until"
                " they have caught up",
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
        except BaseException:  # what is no Exception, a receiver's sys.exit(), would end the thread
            logger.exception("a receiver of %s failed", signal.name)


def _arguments(event: Event) -> dict[str, Any]:
    return {field.name: getattr(event, field.name) for field in fields(event)}


class _Last:
    """Stands in the queue like a signal, and says when its turn has come."""

    name = "the last one"

    def __init__(self, done: threading.Event) -> None:
        self._done = done

    def send(self, sender: Any) -> None:
        """All before it were called."""
        self._done.set()
