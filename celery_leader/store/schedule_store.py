"""The shared schedule in Redis, and the dispatch of a tick.

Guaranteed: one atomic step checks the lease, claims the tick, writes the new state and pushes the
message. So a tick is dispatched once whatever becomes of the leader that tries, and the state
never moves without the first push of its message. A tick is claimed by comparing the stored state
of its entry with the state that the dispatcher read, so a script that is sent twice finds its own
work done. Not guaranteed: anything when Redis loses the hash; a new leader then anchors every
entry anew.

Keys: ``celery-leader:{namespace}:schedule:beat``, a hash of entry name to JSON, and
``celery-leader:{namespace}:projects:beat``, a hash of a project's id to the text that tells it
from others.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_leader.errors import StoreUnavailable

from .client import Script
from .scripts import Keys, fenced, lua
from .wire import as_stored, exact

Calls = Sequence[tuple[Script, Sequence[str], Sequence[Any]]]
Run = Callable[[Calls], list[Any]]

DISPATCH = Script(fenced("schedule_dispatch"), ("hash", "hash"), further="list")
FORGET = Script(fenced("schedule_forget"), ("hash", "hash"))
LOAD = Script(lua("schedule_load"), ("hash", "hash"))
STATE = Script(lua("schedule_state"), ("hash",))
COUNT = Script(lua("schedule_count"), ("hash",))


class Outcome(enum.Enum):
    """What became of one attempt to dispatch."""

    SENT = "sent"
    #: An earlier attempt of ours went through and its reply was lost.
    REPEATED = "repeated"
    #: The entry's state is not what it was read to be.
    CLAIMED = "claimed"
    #: Another leads, or our lease has run out.
    REFUSED = "refused"
    #: The election's record is gone or an old copy: no evidence that we do not lead.
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Push:
    """One command that delivers a message: ``LPUSH key message``, ``PUBLISH topic message``."""

    command: str
    key: str
    value: bytes | str | int

    @property
    def is_to_a_key(self) -> bool:
        """Whether it goes to a key, and not to a topic."""
        return self.command != "PUBLISH"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A later push of a dispatch that Redis refused after it had done the first push."""

    command: str
    target: str
    error: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of Redis to one attempt to dispatch."""

    outcome: Outcome
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class FencingToken:
    """The proof of leadership that comes with each write: a nonce and a term."""

    nonce: str
    term: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The shared schedule as it was read.

    Attributes:
        states: the state of each entry, by its name; bytes that are not UTF-8 are escaped.
        now: Redis's clock at that moment, in seconds since the epoch.
        projects: the text that is kept for each project, by the project's id.
    """

    states: dict[str, str]
    now: float
    projects: dict[str, str] = field(default_factory=dict)


class ScheduleStore:
    """The schedule's state, written by the leader of ``election`` only.

    Args:
        run: runs scripts and returns their replies; may raise ``StoreUnavailable``.
        keys: where to write.
        election: whose leader may write.
    """

    def __init__(self, run: Run, keys: Keys, election: str) -> None:
        self._run = run
        self._prefix = keys.prefix
        self._record = keys.of("election", election)
        self._schedule = keys.of("schedule", election)
        self._projects = keys.of("projects", election)

    def load(self) -> Stored:
        """Every entry's state.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        micros, *flat = _one(self._run([(LOAD, [self._schedule, self._projects], [])]))
        # Escaped and not replaced: a write must name the old state byte for byte.
        states, projects = ([exact(i) for i in each] for each in flat)
        return Stored(
            dict(zip(states[::2], states[1::2], strict=True)),
            int(micros) / 1e6,
            dict(zip(projects[::2], projects[1::2], strict=True)),
        )

    def dispatched(self) -> int:
        """How many messages the present entries have sent altogether.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return int(_one(self._run([(COUNT, [self._schedule], [])])))

    def dispatch(
        self, token: FencingToken, entry: str, old: str, new: str, pushes: Sequence[Push]
    ) -> Answer:
        """Claim a tick of ``entry``, advance its state and deliver its message, or do nothing.

        If Redis refuses the first push, nothing is done. The answer lists the later pushes that
        it refused.

        Raises:
            StoreUnavailable: nobody knows; call it again with the same arguments.
        """
        call = self._dispatch_call(token, entry, old, new, pushes)
        outcome, *refusals = _one(self._run([call]))
        return Answer(
            Outcome(outcome.decode()),
            tuple(Refusal(*(part.decode(errors="replace") for part in each)) for each in refusals),
        )

    def state(self, entry: str) -> str:
        """The state of one entry; empty if there is none.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        reply = _one(self._run([(STATE, [self._schedule], [as_stored(entry)])]))
        return exact(reply)

    def anchor(self, token: FencingToken, states: dict[str, tuple[str, str]]) -> Outcome:
        """Write ``(old, new)`` states of entries that have nothing to deliver.

        Returns ``SENT`` if all were written, or else the first other outcome.

        Raises:
            StoreUnavailable: nobody knows; call it again with the same arguments.
        """
        calls = [
            self._dispatch_call(token, entry, old, new, ()) for entry, (old, new) in states.items()
        ]
        outcomes = [Outcome(_one([reply])[0].decode()) for reply in self._run(calls)]
        good = (Outcome.SENT, Outcome.REPEATED)
        return next((outcome for outcome in outcomes if outcome not in good), Outcome.SENT)

    def forget(self, token: FencingToken, entries: Sequence[str]) -> Outcome:
        """Remove the state of entries.

        Raises:
            StoreUnavailable: nobody knows; call it again with the same arguments.
        """
        args = [token.nonce, token.term, *map(as_stored, entries)]
        reply = self._run([(FORGET, [self._record, self._schedule], args)])
        return Outcome(_one(reply).decode())

    def register(
        self, token: FencingToken, project: str, old: str, new: str, unused: Sequence[str]
    ) -> Outcome:
        """Replace the text ``old`` of ``project`` by ``new``, and remove the ``unused`` projects.

        Raises:
            StoreUnavailable: nobody knows; call it again with the same arguments.
        """
        keys = [self._record, self._projects]
        who = [token.nonce, token.term]
        kept, gone = self._run(
            [
                (DISPATCH, keys, [*who, *map(as_stored, (project, old, new))]),
                (FORGET, keys, [*who, *map(as_stored, unused)]),
            ]
        )
        _one([gone])
        return Outcome(_one([kept])[0].decode())

    def _dispatch_call(
        self, token: FencingToken, entry: str, old: str, new: str, pushes: Sequence[Push]
    ) -> tuple[Script, list[str], list[Any]]:
        keys = [self._prefix + push.key for push in pushes if push.is_to_a_key]
        deliveries = [
            part for push in pushes for part in (push.command, self._prefix + push.key, push.value)
        ]
        return (
            DISPATCH,
            [self._record, self._schedule, *keys],
            [token.nonce, token.term, *map(as_stored, (entry, old, new)), *deliveries],
        )


def _one(replies: list[Any]) -> Any:
    reply = replies[0]
    if isinstance(reply, StoreUnavailable):
        raise reply
    return reply
