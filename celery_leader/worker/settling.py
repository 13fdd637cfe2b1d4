"""Tells Redis which fetched messages are done.

Guaranteed: what an outage swallows is told again until there is an answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from redis.exceptions import RedisError

from celery_leader.runtime.log import get_logger

logger = get_logger(__name__)

_PAUSE = 1.0  # seconds between two tries


class Settling:
    """What one worker has to tell of the messages of one leader queue.

    Args:
        queue: the name of the queue.
        settle: acknowledges messages in Redis; returns the tags of those that another worker has.
        call_after: calls a function after so many seconds, unless the worker loses its
            connection before.

    Attributes:
        owed: the tags of the messages that are done, and of which Redis may not know that.
    """

    def __init__(
        self,
        queue: str,
        settle: Callable[[Collection[str]], set[str]],
        call_after: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self.owed: set[str] = set()
        self._queue = queue
        self._settle = settle
        self._call_after = call_after
        self._lost: deque[str] = deque(maxlen=1000)
        self._tries_again = False

    def connected(self) -> None:
        """The worker has a new connection, and has dropped the timers of the one before."""
        self._tries_again = False

    def tell(self, *tags: str) -> None:
        """These are done, beside those that are owed; they are owed until Redis answers."""
        self.owed.update(tags)
        if not self.owed:
            return
        told = list(self.owed)
        try:
            lost = self._settle(told)
        except (RedisError, OSError) as exc:
            logger.debug("%s: an acknowledgement has to wait: %s", self._queue, exc)
            if not self._tries_again:
                self._tries_again = True
                self._call_after(_PAUSE, self._try_again)
        else:
            self.owed.difference_update(told)
            self._lost.extend(lost)

    def was_lost(self, tag: str) -> bool:
        """Whether another worker had the message when it was acknowledged here."""
        return tag in self._lost

    def _try_again(self) -> None:
        self._tries_again = False
        self.tell()
