"""Fetches nothing for a moment after Redis has refused, and says now and then why."""

from __future__ import annotations

from collections.abc import Callable

from redis.exceptions import ResponseError

from celery_leader.runtime.clock import now
from celery_leader.runtime.log import get_logger

logger = get_logger(__name__)

_PAUSE = 1.0  # seconds after a refusal that has to do with Redis or with the queue
_SILENCE = 60.0  # seconds between two log lines about one trouble


class Pause:
    """Whether one leader queue is left alone for a moment.

    Args:
        queue: its name.
        call_after: calls a function after so many seconds, unless the worker loses its
            connection before.
        wake: called when the pause is over.
    """

    def __init__(
        self,
        queue: str,
        call_after: Callable[[float, Callable[[], None]], object],
        wake: Callable[[], object],
    ) -> None:
        self.lasts = False
        self._queue = queue
        self._call_after = call_after
        self._wake = wake
        self._trouble = ""
        self._told_at = 0.0

    def connected(self) -> None:
        """The worker has a new connection, and has dropped the timers of the one before."""
        self.lasts = False

    def begin(self, seconds: float = _PAUSE) -> None:
        """Fetch nothing for so long."""
        self.lasts = True
        self._call_after(seconds, self._end)

    def because_of(self, refusal: ResponseError) -> None:
        """Fetch nothing for a moment, and say why unless that was said a moment ago."""
        self.begin()
        text = str(refusal)
        if text == self._trouble and now() < self._told_at + _SILENCE:
            return
        self._trouble, self._told_at = text, now()
        logger.error("%s cannot be fetched from: %s; %s", self._queue, text, _advice(text))

    def _end(self) -> None:
        self.lasts = False
        self._wake()


def _advice(refusal: str) -> str:
    """What helps against a refusal of Redis."""
    if "unknown command" in refusal.lower():
        return "this server is older than Redis 6.2, which leader-only tasks need"
    if "WRONGTYPE" in refusal:
        return "the queue, or a key of its election, is of another type; delete that key"
    return "leader-only tasks wait until that is mended"
