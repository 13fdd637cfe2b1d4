"""The channel over which a leader receives the messages of one leader queue.

kombu's own channel pops messages with ``BRPOP``. Redis then gives a message to a connection that
may be dying, and only afterwards is it noted who has it. This channel waits without taking, and
fetches with one script. It stands beside the channel of the worker's task consumer, on the same
connection: kombu's event loop drives both. Credit, delivery and remote control stay with the
task consumer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any, Protocol

from redis.exceptions import NoScriptError, ResponseError

from celery_leader.compat.kombu import channel_beside, renew_credentials, stop_polling
from celery_leader.store.in_flight import FETCH

#: Seconds that one wait lasts. ``BLMOVE`` waits for one list, so as long as all messages have one
#: priority, a longer wait costs nothing; messages of another priority are found after it.
_WAIT = 2.0
_SHORT_WAIT = 0.5
#: Redis may end a wait so many seconds late before kombu takes the connection for dead.
_LATE = 1.0


class Source(Protocol):
    """What a ``LeaderChannel`` asks and tells: the fetcher of its queue."""

    queue: str
    lists: Sequence[str]

    def may_fetch(self) -> bool:
        """Whether messages may be fetched at this moment; no I/O."""

    def fetch_arguments(self, most: int) -> tuple[list[str], list[Any]]:
        """Keys and arguments of the next ``FETCH``."""

    def take_in(self, answer: Any) -> tuple[int, int | None]:
        """Deliver what a fetch has brought.

        Returns how many messages that were, and the number of the list that the last came from.
        """

    def failed(self, exc: ResponseError) -> None:
        """Redis refused the fetch or the wait."""

    def answer_lost(self) -> None:
        """The answer to the last fetch will never be read."""

    def acknowledge(self, channel: LeaderChannel, tag: str) -> None:
        """A message that came over ``channel`` is done."""

    def reject(self, channel: LeaderChannel, tag: str, *, requeue: bool) -> None:
        """A message that came over ``channel`` is not wanted, or to be delivered again later."""


class Credit:
    """The credit of the task consumer's channel, which all channels of a worker share.

    Stands for the ``QoS`` of a ``LeaderChannel``. It restores nothing when the channel closes.
    """

    def __init__(self, channel: Any) -> None:
        self._qos = channel.qos

    def can_consume(self) -> bool:
        """Whether one more message may be received."""
        return bool(self._qos.can_consume())

    def restore_visible(self, *args: Any, **kwargs: Any) -> Any:
        """Deliver again what other workers have not acknowledged; kombu asks any channel."""
        return self._qos.restore_visible(*args, **kwargs)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """The channel closes."""


class LeaderChannel:
    """Stands before the class of the transport's channel; made by ``leader_channel``."""

    #: No message of another queue, no fanout, nothing to restore.
    do_restore = False
    source: Source
    closed: bool

    def attach(self, source: Source, credit: Credit, most: Callable[[], int], hub: Any) -> None:
        """Begin to fetch for ``source``, at most ``most()`` messages at once."""
        self.source = source
        self._hub = hub
        self._qos = credit
        self._most = most
        self._asked = 0
        self._unanswered = False
        self._text_wanted = False
        self._waits = False
        self._wait_for = 0
        self._seen: set[int] = set()
        self.brpop_timeout = _WAIT + _LATE

    # -- called by kombu's event loop -----------------------------------------------------

    @property
    def awaits_answer(self) -> bool:
        """Whether a fetch is under way, or its answer was lost."""
        return self._unanswered

    @property
    def active_queues(self) -> list[str]:
        """The leader queue, while its messages may be fetched."""
        source = self.__dict__.get("source")
        return [source.queue] if source is not None and source.may_fetch() else []

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Wait until there is a message, and fetch; the answers come later."""
        if self._unanswered:  # kombu dropped the connection because it was silent
            self.source.answer_lost()
        self._asked = self._most()
        keys, arguments = self.source.fetch_arguments(self._asked)
        fetch = FETCH.by_text if self._text_wanted else FETCH.by_sha
        commands = [fetch(keys, arguments)]
        if self._waits:
            name = self.source.lists[self._wait_for]
            wait = _WAIT if len(self._seen) < 2 else _SHORT_WAIT
            # A list that is moved onto itself stays as it is.
            commands.insert(0, ["BLMOVE", name, name, "RIGHT", "RIGHT", wait])
        connection = self.client.connection  # type: ignore[attr-defined]
        self._in_poll = connection
        self._brpop_sent_at = time.monotonic()
        self._unanswered = True
        connection.send_packed_command(connection.pack_commands(commands))

    def _brpop_read(self, **options: Any) -> bool:
        """Take in what was fetched."""
        waited, self._waits = self._waits, True
        try:
            *before, answer = self._read_answers(2 if waited else 1)
            self._unanswered = False
        finally:
            self._in_poll = None
            renew_credentials(self)
        if isinstance(answer, NoScriptError):
            self._text_wanted, self._waits = True, False
            raise Empty
        self._text_wanted = False
        refusals = [each for each in (answer, *before) if isinstance(each, ResponseError)]
        count = 0
        if answer not in refusals:
            # Also if the wait was refused: what was fetched is this worker's.
            count, came_from = self.source.take_in(answer)
            if came_from is not None:
                self._wait_for = came_from
                self._seen.add(came_from)
            # If there was less than asked for, the queue is empty now.
            self._waits = count < self._asked
        if refusals:
            self.source.failed(refusals[0])
        if not count:
            raise Empty
        return True

    def _read_answers(self, count: int) -> list[Any]:
        """So many answers; a refusal is an answer."""
        connection = self.client.connection  # type: ignore[attr-defined]
        answers: list[Any] = []
        for _ in range(count):
            try:
                answers.append(connection.read_response())
            except ResponseError as exc:
                answers.append(exc)
            except self.connection_errors:  # type: ignore[attr-defined]
                connection.disconnect()
                raise
        return answers

    # -- called by messages and by Celery -------------------------------------------------

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message; also after this channel was closed."""
        self.source.acknowledge(self, delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message, or have it delivered again; also after this channel was closed."""
        self.source.reject(self, delivery_tag, requeue=requeue)

    def close(self) -> None:
        """Close the connection of this channel, also while it waits."""
        # kombu would first wait for the answer, and a message would come to a channel that closes.
        # What is fetched and never read is given back by the source.
        self._in_poll = None
        if not self.closed:
            stop_polling(self, self._hub)
        super().close()  # type: ignore[misc]


def leader_channel(beside: Any, source: Source, most: Callable[[], int], hub: Any) -> LeaderChannel:
    """A channel that fetches for ``source``, on the connection of the channel ``beside``.

    ``hub``: the worker's event loop, if it has one.
    """
    channel: LeaderChannel = channel_beside(beside, LeaderChannel)
    channel.attach(source, Credit(beside), most, hub)
    return channel


def is_fetched(message: Any) -> bool:
    """Whether ``message`` came over a ``LeaderChannel``."""
    return isinstance(message.channel, LeaderChannel)
