"""Holds the slots of the bodies that run here, of tasks with ``max_running``.

A slot is taken before a request is given to the pool, and freed when its body has ended. Celery
does not call back for every end of a body, so those that run are looked at, too. Guaranteed: a slot
that cannot be freed now is freed when Redis answers again. See ``celery_leader.store.slots`` for
what holds across workers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from celery_leader.runtime.log import get_logger
from celery_leader.store.slots import Answer, Limit

if TYPE_CHECKING:
    from .state import WorkerState

logger = get_logger(__name__)

_PAUSE = 1.0  # seconds between two looks at the bodies that run


class Slots:
    """The slots of one worker in one election.

    Args:
        state: the state of the worker.
        take: asks Redis for a slot for the message with a tag.
        end: tells Redis that a message with a tag needs no slot any more.
        running: the tags of the messages whose bodies run here.
    """

    def __init__(
        self,
        state: WorkerState,
        take: Callable[[str, Limit], Answer],
        end: Callable[[str, Limit], None],
        running: Callable[[], set[str]],
    ) -> None:
        self._state = state
        self._ask = take
        self._tell = end
        self._running = running
        #: The messages that have a slot, by tag, each with its request: a message that comes again
        #: has the same tag.
        self._taken: dict[str, tuple[Limit, object]] = {}
        #: Those that need none any more, of which Redis does not know yet.
        self._ended: dict[str, Limit] = {}
        self._watches = False

    def __contains__(self, tag: str) -> bool:
        return tag in self._taken

    def holds(self, tag: str, request: object) -> bool:
        """Whether the message has a slot, which was taken for this request."""
        return self._taken.get(tag, (None, None))[1] is request

    def take(self, tag: str, limit: Limit, request: object) -> Answer:
        """Take a slot for the message of a request, or have it set aside."""
        answer = self._ask(tag, limit)
        if answer is Answer.TAKEN:
            self._ended.pop(tag, None)  # of the same message, when it was here before
            self._taken[tag] = limit, request
            self._watch_soon()
        return answer

    def end(self, tag: str, limit: Limit) -> None:
        """A message is done: free its slot, if it has one; for any thread."""
        self._taken.pop(tag, None)
        self._ended[tag] = limit
        self._state.call_in_loop(self._tell_ended)

    def gone(self, tag: str) -> None:
        """A message went back to its queue; Redis has freed its slot."""
        self._taken.pop(tag, None)
        self._ended.pop(tag, None)

    def connected(self) -> None:
        """The worker has a new connection, and Celery has dropped the timers."""
        self._watches = False
        if self._taken or self._ended:
            self._watch_soon()

    def finish(self) -> None:
        """The worker ends, and no body runs here any more."""
        self._ended.update({tag: limit for tag, (limit, _) in self._taken.items()})
        self._taken.clear()
        self._tell_ended()

    def _tell_ended(self) -> None:
        for tag, limit in list(self._ended.items()):
            try:
                self._tell(tag, limit)
            except (RedisError, OSError) as exc:
                logger.debug("%s: the end of a body has to wait: %s", limit.task, exc)
                self._watch_soon()
                return
            self._ended.pop(tag, None)

    def _watch_soon(self, ended: frozenset[str] = frozenset()) -> None:
        if not self._watches:
            self._watches = True
            self._state.consumer.timer.call_after(_PAUSE, partial(self._watch, ended))

    def _watch(self, ended: frozenset[str]) -> None:
        """Free the slots of bodies that ended without a word.

        ``ended``: those that did not run at the last look; the word may be under way.
        """
        self._watches = False
        ended_now = frozenset(set(self._taken) - self._running())
        for tag in ended_now & ended:
            taken = self._taken.pop(tag, None)  # a thread of the pool may have been here
            if taken is not None:
                self._ended[tag] = taken[0]
        self._tell_ended()
        if self._taken or self._ended:
            self._watch_soon(ended_now - ended)
