"""What the modules of this room share about the worker of one app."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .skipping import SkippedResults

if TYPE_CHECKING:
    from celery import Celery

    from .fetching import Fetcher
    from .handing_over import Stray
    from .message_guard import LeaderOnlyRequest


class WorkerState:
    """The worker of one app in this process.

    Attributes:
        consumer: Celery's consumer; ``None`` before the worker was connected.
        wake: ends the wait of the worker's event loop; for any thread.
        waiting: leader-only requests whose body has not begun, in the order in which they came.
            Celery forgets its own list before a consumer step hears of a shutdown.
        fetchers: fetch the messages of leader queues, by election.
        kept: messages that could not be handed over yet, by the identity of the message.
        skipped: stores the results of skipped tasks.
    """

    def __init__(self) -> None:
        self.consumer: Any = None
        self.wake: Callable[[], None] = lambda: None
        self.waiting: dict[int, LeaderOnlyRequest] = {}
        self.fetchers: dict[str, Fetcher] = {}
        self.kept: dict[int, Stray] = {}
        self.skipped = SkippedResults()

    @property
    def task_consumer(self) -> Any:
        """What Celery consumes tasks with; ``None`` while the worker is not connected."""
        return getattr(self.consumer, "task_consumer", None)

    def call_in_loop(self, act: Callable[[], object]) -> None:
        """Have the worker's event loop call ``act``; for any thread."""
        if self.consumer.hub is None:
            act()  # a pool of greenlets: any greenlet may acknowledge
            return
        self.consumer.hub.call_soon(act)
        self.wake()


_states: weakref.WeakKeyDictionary[Celery, WorkerState] = weakref.WeakKeyDictionary()


def worker_state(app: Celery) -> WorkerState:
    """The one ``WorkerState`` of ``app`` in this process, made at the first call."""
    state = _states.get(app)
    if state is None:
        state = _states.setdefault(app, WorkerState())
    return state
