"""Counts the messages that wait in a leader queue, for metrics.

A fetch cannot tell it: a leader whose bodies take long fetches nothing meanwhile, and that is when
its queue grows. Not guaranteed: that the count is newer than the pool lets it be. A body of a solo
worker holds up its event loop, and so this count.
"""

from __future__ import annotations

from redis.exceptions import RedisError

from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.log import get_logger

from .fetching import Fetcher
from .state import WorkerState

logger = get_logger(__name__)

_EVERY = 15.0  # seconds


class WaitingCount:
    """How many messages waited in one leader queue a moment ago.

    Attributes:
        waiting: how many; ``None`` while this worker does not fetch from the queue, and while Redis
            does not answer.

    Args:
        runtime: the runtime of the worker's app.
        state: the state of the worker.
        fetcher: fetches from the queue.
    """

    def __init__(self, runtime: AppRuntime, state: WorkerState, fetcher: Fetcher) -> None:
        self.waiting: int | None = None
        self._runtime = runtime
        self._state = state
        self._fetcher = fetcher
        self._round = 0

    def begin(self) -> None:
        """Count now, and again and again, if anybody wants to know."""
        self._round += 1
        self._count(self._round)

    def end(self) -> None:
        """Count no more."""
        self._round += 1
        self.waiting = None

    def _count(self, counted_in: int) -> None:
        if counted_in != self._round:
            return  # of a time before the worker connected again, or before it was elected again
        self.waiting = self._ask() if self._runtime.counts_backlogs else None
        self._state.consumer.timer.call_after(_EVERY, self._count, (counted_in,))

    def _ask(self) -> int | None:
        try:
            return self._fetcher.count_waiting()
        except (RedisError, OSError) as exc:
            logger.debug(
                "%s: the messages that wait cannot be counted: %s", self._fetcher.queue, exc
            )
            return None
