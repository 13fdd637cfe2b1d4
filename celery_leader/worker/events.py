"""A worker's elections in Celery's event stream, for Flower, ``celery events`` and the like.

Guaranteed: the worker's own thread sends them over its own event dispatcher, in order, and they
obey ``-E``, ``--without-heartbeat`` and the like as other worker events do. Not guaranteed: that
each one arrives. Like all events, they are lost while the broker is away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from kombu.common import ignore_errors

from celery_leader.compat.celery_worker import SOFTWARE_INFO
from celery_leader.core.events import Deposed, Elected, Event, Followed

_MOST_WAITING = 100


class WorkerEvents:
    """The events of one worker's elections that are still to be sent."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_MOST_WAITING)
        self._had_heart = False

    def observe(self, event: Event) -> bool:
        """Keep ``event`` if monitors want it; whether it was kept. For any thread."""
        kept = list(_worker_events_of(event))
        self._waiting += kept
        return bool(kept)

    def send(self, c: Any) -> None:
        """Send the kept events; in the worker's own thread."""
        self._had_heart = self._had_heart or c.heart is not None
        dispatcher = c.event_dispatcher
        while self._waiting and dispatcher is not None:
            kind, fields = self._waiting.popleft()
            ignore_errors(c, dispatcher.send, kind, **fields)

    def send_last(self, c: Any) -> None:
        """Send the kept events at the end of the worker."""
        if not self._waiting:
            return
        self.send(c)
        if self._had_heart and c.heart is None and c.event_dispatcher is not None:
            # The worker has said that it is offline. To monitors a later event means that it is
            # back, so it says "offline" once more.
            ignore_errors(c, c.event_dispatcher.send, "worker-offline", **SOFTWARE_INFO)


def _worker_events_of(event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
    """The worker events that tell monitors of ``event``; Celery adds the worker's name."""
    match event:
        case Elected(election, node, term):
            yield "worker-leader-elected", {"election": election, "term": term}
            fields = {"election": election, "term": term, "leader": node}
            yield "worker-leader-changed", fields
        case Followed(election, _, term, leader):
            fields = {"election": election, "term": term, "leader": leader}
            yield "worker-leader-changed", fields
        case Deposed(election, _, term, reason, led_for):
            fields = {
                "election": election,
                "term": term,
                "reason": reason,
                "sudden": event.sudden,
                "led_for": round(led_for, 3),
            }
            yield "worker-leader-deposed", fields
