"""Fetches the messages of a leader queue, and answers for each until it is settled.

Guaranteed on Redis: only a leader fetches, and a message is at any moment with one worker or in
its queue. An acknowledgement that an outage swallowed is made good when the worker is connected
again, and what it does not run then goes back to the queue. Not guaranteed: that a body does not
run twice if the worker was given up for dead and runs on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis.exceptions import NoScriptError, RedisError, ResponseError

from celery_leader.compat.celery_worker import SoloPool
from celery_leader.compat.kombu import queue_lists, receive, run_command, unacked_keys
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.local_candidate import LocalCandidate
from celery_leader.runtime.log import get_logger
from celery_leader.store.client import Script
from celery_leader.store.in_flight import (
    LAST_CONNECTION,
    Fetched,
    InFlight,
    QueueKeys,
    read_fetched,
)
from celery_leader.store.queued import WAITING
from celery_leader.store.slots import Answer, Limit, end_slot, take_slot

from .leader_channel import LeaderChannel, leader_channel
from .message_check import check_message
from .pausing import Pause
from .settling import Settling
from .slots import Slots
from .state import WorkerState

logger = get_logger(__name__)

_MOST = 10  # messages in one fetch
_GLANCE = 1.0  # seconds between looks at messages of earlier connections
_MISSING_PAUSE = 0.2  # seconds; a leader writes a record that is missing anew at once


class Fetcher:
    """The part of one worker in one leader queue.

    Args:
        runtime: the runtime of the worker's app.
        election: whose leader consumes the queue.
        candidates: the worker's candidates, by election.
        state: the state of the worker.
        room: how many more messages the worker may receive; ``None``: any number.
        running: the tags of the messages whose bodies run here.
    """

    def __init__(
        self,
        runtime: AppRuntime,
        election: str,
        candidates: Mapping[str, LocalCandidate],
        state: WorkerState,
        room: Callable[[], int | None],
        running: Callable[[], set[str]],
    ) -> None:
        self.queue = runtime.queue(election)
        self.lists: Sequence[str] = ()
        self.slots = Slots(state, self._take_slot, self._end_slot, running)
        self._runtime = runtime
        self._election = election
        self._candidates = candidates
        self._state = state
        self._room = room
        self._running = running
        self._task_consumer: Any = None
        self._unacked: Sequence[str] = ()
        self._channel: LeaderChannel | None = None
        #: Each message that this worker has to settle, by its tag: the channel it came over. A
        #: message that comes again has the same tag, and comes over another channel.
        self._held: dict[str, LeaderChannel] = {}
        self._settling = Settling(self.queue, self._settle, self._call_after)
        #: Whether Redis may have messages in flight here that this worker does not know.
        self._astray = False
        self._connection = 0
        self._term: int | None = None
        self._refused_term: int | None = None
        self._cleared_term: int | None = None
        self._pause = Pause(self.queue, self._call_after, lambda: state.wake())

    @property
    def fetches(self) -> bool:
        """Whether messages are fetched, as soon as there are some and this worker leads."""
        return self._channel is not None

    @property
    def held(self) -> int:
        """How many messages this worker has to settle."""
        return len(self._held)

    # -- called by the worker -------------------------------------------------------------

    def connected(self, task_consumer: Any) -> None:
        """The worker has a new connection. What it does not run is to be given back now."""
        channel = task_consumer.channel
        self._task_consumer, self._channel = task_consumer, None
        self._pause.connected()
        self._settling.connected()
        self.lists = queue_lists(channel, self.queue)
        self._unacked = unacked_keys(channel)
        self._astray = self._connection > 0
        self._connection += 1
        self._watch_kept(set())
        self.slots.connected()

    def begin(self) -> None:
        """Fetch from now on, while this worker leads."""
        if self._channel is None:
            beside = self._task_consumer.channel
            self._channel = leader_channel(beside, self, self._most, self._state.consumer.hub)

    def end(self) -> None:
        """Fetch no more. What was fetched stays until it is settled or given back."""
        channel, self._channel = self._channel, None
        if channel is not None:
            self._astray = self._astray or channel.awaits_answer
            channel.close()

    def give_back_but_running(self) -> None:
        """Give back all messages whose bodies do not run, in front of the queue and in order.

        If that fails, nobody knows whether they are in their queue again. So they are not this
        worker's any more, and are to be given back once more.
        """
        if self._held or self._astray:
            running = self._running()
            for tag in self._held.keys() - running:
                del self._held[tag]
                self.slots.gone(tag)
            self._astray = True
            self._settling.tell()
            self._give_back_but_held(self._connection + 1)

    def finish(self) -> None:
        """The worker ends: give back everything, and fetch no more."""
        if self._connection:
            self._held.clear()
            self._settling.tell()
            self.slots.finish()
            self._give_back_but_held(LAST_CONNECTION)

    def give_back(self, message: Any, *, header: str = "") -> bool:
        """Give back one message, also if its acknowledgement is under way.

        It goes in front of the others in the queue; with one more ``header``, as JSON, behind
        them. Returns whether the message is in the queue, or was given back before. If not, it
        was acknowledged already.
        """
        tag: str = message.delivery_tag
        if self._held.get(tag) is message.channel:
            self._settling.owed.discard(tag)
            self._put_back(tag, behind=bool(header), header=header)
            return True
        return self._settling.was_lost(tag)

    def _watch_kept(self, ended: Collection[str]) -> None:
        """Give back what came over an earlier connection and does not run any more.

        Celery may end such a body without an acknowledgement, and rely on the broker to deliver
        its message again. ``ended``: those that had ended at the last look; an acknowledgement may
        be under way.
        """
        kept = {tag for tag, came in self._held.items() if came.closed}
        ended_now = kept.difference(self._running(), self._settling.owed)
        for tag in ended_now.intersection(ended):
            with contextlib.suppress(RedisError, OSError):  # at the next look, then
                self.reject(self._held[tag], tag, requeue=True, behind=False)
        if kept:
            self._call_after(_GLANCE, partial(self._watch_kept, ended_now))

    def count_waiting(self) -> int:
        """How many messages wait in the queue."""
        return int(self._run(WAITING, self._keys.all, []))

    # -- called by the channel ------------------------------------------------------------

    def may_fetch(self) -> bool:
        """Whether messages may be fetched at this moment; no I/O."""
        if self._pause.lasts or self._channel is None:
            return False
        term = self._candidate.term()
        return term is not None and term != self._refused_term

    def fetch_arguments(self, most: int) -> tuple[list[str], list[Any]]:
        """Keys and arguments of the next fetch."""
        if self._astray:
            try:
                self._give_back_but_held(self._connection + 1)
            except ResponseError as exc:
                self.failed(exc)
        self._term = self._candidate.term() or 0
        return self._in_flight.fetch_arguments(
            self._term, self._connection, most, all_lives=self._term != self._cleared_term
        )

    def take_in(self, answer: Any) -> tuple[int, int | None]:
        """Deliver what a fetch has brought; how many messages, and the list of the last."""
        fetched = read_fetched(answer)
        if fetched.refused:
            self._on_refusal(fetched.refused)
            return 0, None
        _report(self.queue, self._keys, fetched)
        if fetched.more_to_give_back:
            return _MOST, None  # the next fetch must not wait
        self._cleared_term = self._term
        channel = self._channel
        assert channel is not None
        for text in fetched.messages:
            self._deliver(channel, text)
        return len(fetched.messages), fetched.came_from

    def failed(self, exc: ResponseError) -> None:
        """Redis refused a fetch, or the queue: say so, and try on in a moment."""
        self._pause.because_of(exc)

    def answer_lost(self) -> None:
        """What the last fetch has brought will never be read."""
        self._astray = True

    def owe(self, message: Any) -> None:
        """``message`` is done, and is acknowledged in a moment; Celery asks its event loop to."""
        tag = message.delivery_tag
        if self._held.get(tag) is message.channel:
            self._settling.owed.add(tag)

    def acknowledge(self, channel: LeaderChannel, tag: str) -> None:
        """A message is done. What cannot be told to Redis now is told when it answers again."""
        if self._held.get(tag) is channel:
            del self._held[tag]
            self._settling.tell(tag)

    def reject(
        self, channel: LeaderChannel, tag: str, *, requeue: bool, behind: bool = True
    ) -> None:
        """A message is dropped, or put back into the queue."""
        if self._held.get(tag) is not channel:
            return
        if requeue:
            self._put_back(tag, behind=behind)
        else:
            self.acknowledge(channel, tag)

    # -- small parts ----------------------------------------------------------------------

    @property
    def _candidate(self) -> LocalCandidate:
        return self._candidates[self._election]

    @property
    def _keys(self) -> QueueKeys:
        keys = self._runtime.redis.keys
        return QueueKeys(self._election, self.queue, self._unacked, self.lists, keys)

    @property
    def _in_flight(self) -> InFlight:
        requester = self._candidate.election.requester
        return InFlight(self._keys, requester.nonce, self._candidate.election.holder)

    def _run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return _run(self._task_consumer.channel, script, keys, args)

    def _call_after(self, seconds: float, act: Callable[[], None]) -> None:
        self._state.consumer.timer.call_after(seconds, act)

    def _take_slot(self, tag: str, limit: Limit) -> Answer:
        election = self._candidate.election
        answer = take_slot(
            self._run, self._keys, election.requester.nonce, self._candidate.term() or 0, tag, limit
        )
        if answer in (Answer.PARKED, Answer.LOST):
            self._held.pop(tag, None)
        return answer

    def _end_slot(self, tag: str, limit: Limit) -> None:
        end_slot(self._run, self._keys, self._candidate.election.requester.nonce, tag, limit)

    def _most(self) -> int:
        """How many messages the next fetch may bring."""
        solo = isinstance(self._state.consumer.pool, SoloPool)  # each body holds up the event loop
        if solo or self._runtime.app.conf.get("worker_disable_prefetch"):
            return 1
        room = self._room()
        return _MOST if room is None else max(1, min(_MOST, room))

    def _deliver(self, channel: LeaderChannel, text: bytes) -> None:
        try:
            message = channel.Message(loads(bytes_to_str(text)), channel=channel)  # type: ignore[attr-defined]
            message.accept = self._task_consumer.accept
            check_message(message)
        except Exception as exc:
            self._set_aside(text, exc)
            return
        self._held[message.delivery_tag] = channel
        receive(self._task_consumer, message)

    def _set_aside(self, text: bytes, exc: Exception) -> None:
        where = self._keys.unreadable
        run_command(self._task_consumer.channel, ["LPUSH", where, text])
        self._settling.tell(loads(bytes_to_str(text))["properties"]["delivery_tag"])
        logger.error(
            "%s: a message that cannot be read (%s: %s) was set aside in the list %s",
            self.queue,
            type(exc).__name__,
            exc,
            where,
        )

    def _settle(self, tags: Collection[str]) -> set[str]:
        return self._in_flight.settle(self._run, tags)

    def _put_back(self, tag: str, *, behind: bool, header: str = "") -> None:
        self._in_flight.give_back(self._run, [tag], behind=behind, header=header)
        del self._held[tag]
        self.slots.gone(tag)

    def _give_back_but_held(self, connection: int) -> None:
        self._connection = connection
        kept = [*self._held, *self._settling.owed]
        given = self._in_flight.give_back_but(self._run, kept, connection)
        self._astray = False
        if given:
            logger.info("%s: %d fetched message(s) given back", self.queue, given)

    def _on_refusal(self, why: str) -> None:
        assert self._term is not None
        if why == "refused":
            self._refused_term = self._term
        elif why == "missing":
            self._pause.begin(_MISSING_PAUSE)
        # A wait may have begun with an earlier term, whose end this worker knows.
        if why != "replaced" and self._term == self._candidate.term():
            self._runtime.participation.lease_rejected(
                self._candidate, self._term, gone=why == "missing"
            )


def _run(channel: Any, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
    try:
        return run_command(channel, script.by_sha(keys, args))
    except NoScriptError:
        return run_command(channel, script.by_text(keys, args))


def _report(queue: str, keys: QueueKeys, fetched: Fetched) -> None:
    if fetched.given_back:
        logger.info(
            "%s: %d message(s) that a lost worker had fetched are in the queue again",
            queue,
            fetched.given_back,
        )
    if fetched.damaged:
        logger.error(
            "%s: %d line(s) of the hash %s make no sense and are left there",
            queue,
            fetched.damaged,
            keys.in_flight,
        )
    if fetched.unreadable:
        logger.error(
            "%s: %d message(s) that are no messages were set aside in the list %s",
            queue,
            fetched.unreadable,
            keys.unreadable,
        )
