"""The messages of one leader queue that were fetched and are not acknowledged yet.

Guaranteed: only the leader takes a message out of its queue, in one step with the note of who has
it. From then on the message is in one place: with the life that fetched it, or in its queue
again, whoever dies at whatever moment. What a life holds is kept for it while its lease lasts or
its node is heard of; then the next leader's fetch puts it back in front of the queue, in order.
Not guaranteed: that a body does not run twice if its worker was given up and runs on.

Keys, beside those of kombu: ``celery-leader:{namespace}:lives:{election}``, a hash of a life to
until when what it holds is kept, ``celery-leader:{namespace}:in-flight:{election}``, a hash of a
delivery tag to the life that holds the message, and
``celery-leader:{namespace}:unreadable:{election}``, a list of messages that no worker can read.
For two more see ``slots``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .client import Script
from .scripts import Keys, fenced, lua

_TYPES = ("hash", "hash", "hash", "hash", "zset", "list", "hash", "zset")


def on_messages(verb: str) -> Script:
    """The script of ``verb`` on the keys of a leader queue."""
    text = "\n".join((fenced("in_flight"), lua("slots", "giving_back", verb)))
    return Script(text, _TYPES, further="list")


FETCH, GIVE_BACK, SETTLE = map(on_messages, ("fetch", "give_back", "settle"))

#: The number of a connection that comes after all others: its life fetches no more. Stands in
#: ``give_back.lua``, too.
LAST_CONNECTION = 2**53


@dataclass(frozen=True, slots=True)
class Fetched:
    """The answer to a fetch.

    Attributes:
        refused: why nothing was fetched: ``refused``, ``missing``, ``replaced``; empty if it was.
        messages: the messages, as texts, in the order of their queue.
        given_back: how many messages of dead lives are in the queue again.
        more_to_give_back: whether others of them are not; then nothing was fetched.
        damaged: how many lines of the in-flight key make no sense.
        unreadable: how many messages were set aside.
        came_from: the number of the list that the last message came from, the first is 0.
    """

    refused: str = ""
    messages: tuple[bytes, ...] = ()
    given_back: int = 0
    more_to_give_back: bool = False
    damaged: int = 0
    unreadable: int = 0
    came_from: int | None = None


#: Runs a script and returns its answer; raises the errors of the Redis client.
RunScript = Callable[[Script, Sequence[str], Sequence[Any]], Any]


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one leader queue.

    Attributes:
        election: whose leader consumes it.
        queue: its name.
        unacked: kombu's hash and index of unacknowledged messages.
        lists: the lists of its messages, the highest priority first.
        keys: the names of this app's keys.
    """

    election: str
    queue: str
    unacked: Sequence[str]
    lists: Sequence[str]
    keys: Keys

    @property
    def all(self) -> list[str]:
        """The keys that each script is given."""
        own = [self.keys.of(kind, self.election) for kind in ("election", "lives", "in-flight")]
        slots, parked = (self.keys.of(kind, self.election) for kind in ("slots", "parked"))
        return [*own, *self.unacked, self.unreadable, slots, parked, *self.lists]

    @property
    def unreadable(self) -> str:
        """Where messages are set aside that no worker can read."""
        return self.keys.of("unreadable", self.election)

    @property
    def in_flight(self) -> str:
        """Where it stands who has which message."""
        return self.keys.of("in-flight", self.election)

    @property
    def suffix(self) -> str:
        """What kombu's record of a message has after the message: exchange and routing key."""
        return f', "", {json.dumps(self.queue)}]'


class InFlight:
    """What one life holds of the messages of a leader queue.

    Args:
        keys: the keys of the queue.
        nonce: names the life.
        node: its name.
    """

    def __init__(self, keys: QueueKeys, nonce: str, node: str) -> None:
        self._keys = keys
        self._nonce = nonce
        self._node = node

    def fetch_arguments(
        self, term: int, connection: int, most: int, *, all_lives: bool
    ) -> tuple[list[str], list[Any]]:
        """Keys and arguments of ``FETCH``, for at most ``most`` messages.

        ``all_lives``: whether messages are to be looked for whose life nobody knows any more.
        """
        arguments = [
            self._nonce,
            term,
            self._node,
            connection,
            most,
            self._keys.suffix,
            int(all_lives),
        ]
        return self._keys.all, arguments

    def settle(self, run: RunScript, tags: Collection[str]) -> set[str]:
        """Acknowledge messages; returns the tags of those that are not this life's any more."""
        return {tag.decode() for tag in run(SETTLE, self._keys.all, [self._nonce, *tags])}

    def give_back(
        self, run: RunScript, tags: Collection[str], *, behind: bool = False, header: str = ""
    ) -> int:
        """Give back these messages; returns how many this life still had.

        Args:
            run: runs the script.
            tags: the delivery tags of the messages.
            behind: to the end of the queue, and not to its front.
            header: a header that the messages then have, as JSON.
        """
        return self._give_back(run, tags, "LPUSH" if behind else "RPUSH", header=header)

    def give_back_but(self, run: RunScript, kept: Collection[str], connection: int) -> int:
        """Give back all that this life holds but ``kept``; returns how many messages went.

        A fetch over a connection with a lower number than ``connection`` is refused from now on:
        its answer would be lost.
        """
        return self._give_back(run, kept, "RPUSH", str(connection))

    def _give_back(
        self,
        run: RunScript,
        tags: Collection[str],
        push: str,
        connection: str = "",
        header: str = "",
    ) -> int:
        given, left = 0, 1
        while left:
            arguments = [self._nonce, self._keys.suffix, push, connection, header, *tags]
            went, left, _ = run(GIVE_BACK, self._keys.all, arguments)
            given += went
        return given


def read_fetched(answer: Sequence[Any]) -> Fetched:
    """The answer to a fetch, as ``fetch.lua`` tells it."""
    what, *told = answer
    if what != b"fetched":
        return Fetched(refused=what.decode())
    given_back, left, damaged, unreadable, came_from, *messages = told
    return Fetched(
        messages=tuple(messages),
        given_back=given_back,
        more_to_give_back=left > 0,
        damaged=damaged,
        unreadable=unreadable,
        came_from=came_from - 1 if messages else None,
    )
