"""The messages of a leader queue: how many wait, which are in flight, and who has them.

Guaranteed: one script reads it and writes nothing. It takes as long for thousands of messages as
for some hundred. Not guaranteed: with more than about ``LINES`` messages in flight, that the one
held longest is among those that are read. How long a message has waited is unknown: Celery's
messages do not say when they were sent.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .in_flight import QueueKeys, on_messages
from .wire import text

QUEUED, WAITING = map(on_messages, ("queued", "waiting"))

#: About how many messages in flight are counted by their holder.
LINES = 1000
#: How many of those are looked up, the longest held first.
MESSAGES = 20


@dataclass(frozen=True, slots=True)
class Holder:
    """A life that has messages in flight.

    Attributes:
        node: its name.
        life: its public name.
        heard_of: whether it was heard of lately; if not, the next leader takes its messages.
        messages: how many it has.
        since: when it fetched the first of them, by the clock of Redis.
    """

    node: str
    life: str
    heard_of: bool
    messages: int
    since: float


@dataclass(frozen=True, slots=True)
class HeldMessage:
    """A message in flight.

    Attributes:
        node: the name of the node that has it.
        life: the public name of that life.
        since: when it was fetched, or its ETA if that was later, by the clock of Redis.
        task: the name of its task; empty if that cannot be read.
        task_id: the id of its task; empty if that cannot be read.
    """

    node: str
    life: str
    since: float
    task: str
    task_id: str

    @property
    def what(self) -> str:
        """The task, for people."""
        return f"{self.task or 'a task'}[{self.task_id or 'id unknown'}]"


@dataclass(frozen=True, slots=True)
class Queued:
    """A leader queue as it stood a moment ago.

    Attributes:
        keys: its keys.
        read_at: the moment, by the clock of Redis.
        waiting: how many messages wait.
        in_flight: how many were fetched and are not done.
        unreadable: how many were set aside because no worker can read them.
        damaged: how many lines about messages in flight make no sense.
        holders: who has what is in flight, the first to fetch first.
        longest: the messages held longest, without those whose ETA is still to come.
        error: why nothing of this is known; empty if it is.
    """

    keys: QueueKeys
    read_at: float = 0.0
    waiting: int = 0
    in_flight: int = 0
    unreadable: int = 0
    damaged: int = 0
    holders: Sequence[Holder] = ()
    longest: Sequence[HeldMessage] = ()
    error: str = ""

    @property
    def queue(self) -> str:
        """Its name."""
        return self.keys.queue

    @property
    def stranded(self) -> int:
        """How many messages in flight are those of lives that nobody has heard of lately."""
        return sum(each.messages for each in self.holders if not each.heard_of)

    def held_for(self, message: HeldMessage) -> float:
        """For how many seconds ``message`` has been held."""
        return max(0.0, self.read_at - message.since)


def queued_call(keys: QueueKeys) -> tuple[Any, list[str], list[Any]]:
    """The call of the script that reads the queue with these keys."""
    return QUEUED, keys.all, [LINES, MESSAGES]


def read_queued(keys: QueueKeys, answer: Sequence[Any]) -> Queued:
    """The leader queue, as ``queued.lua`` tells of it."""
    server_us, waiting, in_flight, unreadable, damaged, holders, longest = answer
    read_at = int(server_us) / 1e6
    held = [_held_message(*each) for each in longest]
    return Queued(
        keys=keys,
        read_at=read_at,
        waiting=waiting,
        in_flight=in_flight,
        unreadable=unreadable,
        damaged=damaged,
        holders=[
            Holder(text(node), text(life), heard_of == 1, messages, int(first) / 1000)
            for node, life, heard_of, messages, first in holders
        ],
        longest=sorted(
            (each for each in held if each.since <= read_at), key=lambda each: each.since
        ),
    )


def _held_message(
    node: bytes, life: bytes, fetched_ms: bytes, task: bytes, task_id: bytes, eta: bytes
) -> HeldMessage:
    since = max(int(fetched_ms) / 1000, _moment(text(eta)))
    return HeldMessage(text(node), text(life), since, text(task), text(task_id))


def _moment(eta: str) -> float:
    """An ETA in seconds since 1970; 0 if there is none, or none that can be read."""
    try:
        at = datetime.datetime.fromisoformat(eta)
        utc = at if at.tzinfo else at.replace(tzinfo=datetime.timezone.utc)
        return max(0.0, utc.timestamp())
    except (ValueError, OverflowError):
        return 0.0
