"""Keeps leader-only tasks that this worker does not know, for a bounded time.

In a rolling deployment a worker may be older than the sender, and Celery would discard the task.
Such a message is handed to its leader queue. If it came from there, or if this app does not know
its election, it is held for a moment and put back into its own queue, behind the others. Not
guaranteed: that a message is kept which neither came from a leader queue nor has the header that
senders of leader-only tasks write.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery.utils.quorum_queues import detect_quorum_queues
from kombu import Queue

from celery_leader.compat.celery_worker import keep_unknown
from celery_leader.compat.kombu import queue_of
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import wall_clock
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import BEAT
from celery_leader.tasks.routing import LEADER_ONLY, leader_queue

from .handing_over import UNKNOWN_SINCE, Stray, hand_over, key_of
from .leader_channel import is_fetched
from .state import WorkerState

logger = get_logger(__name__)

_SHORTEST, _LONGEST = 1.0, 10.0  # seconds for which a message is held
_MOST = 1000  # messages for which the prefetch is raised


@dataclass(slots=True, eq=False)
class _Held:
    """A message that is held, and by how much the prefetch was raised for it."""

    stray: Stray
    raised: int


class UnknownTasks:
    """The messages of unknown leader-only tasks that one worker holds.

    Args:
        runtime: the runtime of the worker's app.
        state: the state of the worker.
    """

    def __init__(self, runtime: AppRuntime, state: WorkerState) -> None:
        self._runtime = runtime
        self._state = state
        self._held: dict[int, _Held] = {}
        self._longest = _LONGEST
        self._told: set[tuple[str, str]] = set()

    # -- called by the consumer step ------------------------------------------------------

    def connected(self, c: Any) -> None:
        """The worker is connected; the broker delivers again what it held before."""
        self._held.clear()
        # There the prefetch cannot be raised, so a held message keeps another one out.
        quorum = detect_quorum_queues(c.app, c.connection.transport.driver_type)[0]
        self._longest = _SHORTEST if quorum else _LONGEST
        keep_unknown(c, self._keep)

    def put_back_all(self) -> None:
        """A shutdown begins, and may take long: put everything back now."""
        for held in list(self._held.values()):
            try:
                self._put_back(held)
            except Exception as exc:
                logger.warning("%s cannot be put back yet: %s", held.stray.task, exc)
                return

    # -- one message ----------------------------------------------------------------------

    def _keep(self, discard: Callable[[], Any], name: str, message: Any) -> Any:
        """Keep a leader-only message; ``discard`` is what Celery does with it."""
        election, timeout = self._election_of(message), self._runtime.settings.unknown_task_timeout
        moment = wall_clock()
        since = _since(message, moment)
        if election is None or not timeout:
            return discard()
        if moment - since >= timeout:
            self._tell(
                name,
                "is discarded, since for %g s (leader_unknown_task_timeout) it came to no worker"
                " that knows it",
                timeout,
            )
            return discard()
        message.headers[UNKNOWN_SINCE] = since
        c = self._state.consumer
        acknowledge = functools.partial(message.ack_log_error, logger, c.connection_errors)
        stray = Stray(c.app, election, name, message, acknowledge)
        if election in self._elections and key_of(message) != self._runtime.queue(election):
            self._tell(name, "goes to %s", self._runtime.queue(election))
            return hand_over(stray)
        stray.back_to = self._own_queue(message, election)
        if stray.back_to is None:
            return discard()
        self._tell(
            name,
            "is put back into %s until it comes to a worker that knows it, for %g s at most"
            " (leader_unknown_task_timeout)",
            stray.back_to.name,
            timeout,
        )
        # The longer it is unknown, the less often it is looked at.
        return self._hold(stray, min(max(_SHORTEST, moment - since), self._longest))

    @property
    def _elections(self) -> set[str]:
        """The elections that this app knows and that run tasks."""
        return self._runtime.elections() - {BEAT}

    def _election_of(self, message: Any) -> str | None:
        """Whose leader is to run the message; ``None`` if it is not known to be leader-only."""
        elections = self._elections
        header = message.headers.get(LEADER_ONLY)
        named = header if isinstance(header, str) else None
        came_by = {self._runtime.queue(election): election for election in elections}
        return named if named in elections else came_by.get(key_of(message), named)

    def _own_queue(self, message: Any, election: str) -> Queue | None:
        """The queue that the message came from, if that can be told."""
        if election in self._elections:
            return leader_queue(self._runtime.app, election)
        return queue_of(message, self._state.task_consumer)

    def _hold(self, stray: Stray, seconds: float) -> None:
        # As Celery does for a message that waits for its ETA.
        qos = self._state.consumer.qos
        before = qos.value
        raised = qos.increment_eventually() - before if len(self._held) < _MOST else 0
        held = self._held[id(stray.message)] = _Held(stray, raised)
        self._state.consumer.timer.call_after(seconds, functools.partial(self._put_back, held))

    def _put_back(self, held: _Held) -> None:
        stray, task_consumer = held.stray, self._state.task_consumer
        if self._held.pop(id(stray.message), None) is not held:
            return
        self._state.consumer.qos.decrement_eventually(held.raised)
        if task_consumer is not None and (
            is_fetched(stray.message) or stray.message.channel is task_consumer.channel
        ):
            hand_over(stray)

    def _tell(self, name: str, what: str, *arguments: object) -> None:
        """Log what becomes of the messages of a task, once."""
        if (name, what) not in self._told:
            self._told.add((name, what))
            logger.error(
                f"task %s is leader-only and unknown to this worker; it {what}",
                name,
                *arguments,
            )


def _since(message: Any, moment: float) -> int:
    """When the message was first seen by a worker that does not know it."""
    since = message.headers.get(UNKNOWN_SINCE)
    valid = isinstance(since, int) and 0 < since <= moment
    return since if valid else int(moment)
