"""The scripts of an election in Redis, and the keys that they work on.

Each verb is one file in ``lua/``, which says what it is given and what it returns. Guaranteed:
a verb happens whole or not at all, and asking again after a lost reply gives the same answer. A
record has no TTL, because the ``volatile-*`` policies evict keys that have one first. A record
that no candidate can have written counts as no record: no candidate learns from it, and it is
written anew as carefully as a record that was lost. A key of another type is refused with a
sentence that names it. Not guaranteed: that Redis keeps the record (eviction, a flush, a replica
that lagged), nor that a forged record is found out if a candidate could have written it.

Keys, which are public (``{namespace}`` is ``leader_namespace``):

=====================================================  =========================================
``celery-leader:{namespace}:election:{name}``          hash, the record
``celery-leader:{namespace}:history:{name}``           stream, who was elected, who gave up and why
``celery-leader:{namespace}:candidates:{name}``        sorted set, node by last contact in ms
``celery-leader:{namespace}:priorities:{name}``        hash, node to its priority, unless that is 0
``celery-leader:{namespace}:held:{name}``              hash, node to until when (ms; 0: no end)
``celery-leader:{namespace}:facts:{name}``             hash, node to what it says of itself
``celery-leader:{namespace}:lives:{name}``             hash, life to until when it keeps messages
``celery-leader:{namespace}:in-flight:{name}``         hash, fetched message to the life that has it
=====================================================  =========================================
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from celery_leader.core.lease import CLOCK_SLACK
from celery_leader.core.timing import LONGEST_LEASE

from .client import Script
from .refusals import DAMAGED
from .wire import millis

#: The record's format. It grows with a field or a state that earlier versions do not know.
FORMAT = 1

#: The most candidates of one election that are kept; those not heard of for longest go first.
MOST_CANDIDATES = 10_000

#: The most lives of one node that the register tells apart.
MOST_LIVES = 5

_CONSTANTS = f"""\
local FORMAT, FAR, LONGEST_LEASE = {FORMAT}, {millis(CLOCK_SLACK)}, {millis(LONGEST_LEASE)}
local MOST, LIVES, DAMAGED = {MOST_CANDIDATES}, {MOST_LIVES}, '{DAMAGED}'
"""


def lua(*names: str) -> str:
    """The text of these files in ``lua/``, one after the other."""
    folder = resources.files(__package__) / "lua"
    return "\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names)


def fenced(verb: str) -> str:
    """The text of a script that begins with ``record.lua``, and so with the fence."""
    return _CONSTANTS + lua("record", verb)


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of the keys of one namespace, with the broker's key prefix in front, once."""

    namespace: str
    prefix: str = ""

    def of(self, kind: str, name: str) -> str:
        """The key that keeps the ``kind`` of thing called ``name``."""
        return f"{self.prefix}celery-leader:{self.namespace}:{kind}:{name}"

    def election(self, name: str) -> list[str]:
        """The keys that every script on an election is given."""
        return [self.of(kind, name) for kind in _KINDS]


_KINDS = {
    "election": "hash",
    "history": "stream",
    "candidates": "zset",
    "priorities": "hash",
    "held": "hash",
    "facts": "hash",
    "lives": "hash",
    "in-flight": "hash",
}


def _on_an_election(verb: str) -> Script:
    return Script(_CONSTANTS + lua("record", "register", verb), tuple(_KINDS.values()))


ACQUIRE, RENEW, RELEASE = map(_on_an_election, ("acquire", "renew", "release"))
READ, HISTORY, CANDIDATES = map(_on_an_election, ("read", "history", "candidates"))
ASK, HOLD, FREE, HELD = map(_on_an_election, ("ask", "hold", "free", "held"))
FORGET = _on_an_election("forget")
