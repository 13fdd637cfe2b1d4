"""The slots of tasks of which only so many bodies run at once.

Guaranteed: a message has a slot before its body begins, and keeps it until its life says that the
body has ended, or is lost; a life that was deposed but is heard of keeps its slots. A message
without one is set aside and comes back in its order, whoever dies at whatever moment. Not
guaranteed: that a life which was given up for lost runs nothing any more.

Keys: ``celery-leader:{namespace}:slots:{election}``, a hash of a delivery tag to the life and the
task whose body runs, and ``celery-leader:{namespace}:parked:{election}``, a sorted set of the
messages that wait for a slot.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .in_flight import QueueKeys, RunScript, on_messages

TAKE_SLOT, END_SLOT = map(on_messages, ("take_slot", "end_slot"))


class Answer(enum.Enum):
    """What came of asking for a slot."""

    TAKEN = b"taken"
    #: No slot is free, and the message stays with this life.
    BUSY = b"busy"
    #: No slot is free, and the message waits for one, with no life.
    PARKED = b"parked"
    #: The message is not with this life any more.
    LOST = b"lost"
    #: This life does not lead.
    REFUSED = b"refused"
    #: The record is gone, so nobody knows whether this life leads.
    MISSING = b"missing"


@dataclass(frozen=True, slots=True)
class Limit:
    """How many bodies of one task may run at once.

    Attributes:
        task: its name.
        slots: how many.
        parks: whether a message without a slot waits for one.
    """

    task: str
    slots: int
    parks: bool


def take_slot(
    run: RunScript, keys: QueueKeys, nonce: str, term: int, tag: str, limit: Limit
) -> Answer:
    """Take a slot for the message with this tag, or set the message aside."""
    arguments = [nonce, term, tag, limit.task, limit.slots, int(limit.parks), keys.suffix]
    return Answer(run(TAKE_SLOT, keys.all, arguments))


def end_slot(run: RunScript, keys: QueueKeys, nonce: str, tag: str, limit: Limit) -> None:
    """Free the slot of a message, if it has one, and let the next message go on."""
    run(END_SLOT, keys.all, [nonce, tag, limit.task, limit.slots])
