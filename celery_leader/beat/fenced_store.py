"""The shared schedule in Redis, as one leader reads and writes it.

Guaranteed: Redis refuses a write unless this leader holds the election's lease with the term that
the write names. A process that always leads has no shared schedule: reads return nothing, and
writes do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.local_candidate import LocalCandidate
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.node_names import node_name
from celery_leader.runtime.settings import BEAT
from celery_leader.store.client import RedisClient
from celery_leader.store.schedule_store import (
    Answer,
    Calls,
    FencingToken,
    Outcome,
    Push,
    ScheduleStore,
    Stored,
)

from .projects import Ownership

logger = get_logger(__name__)

#: The outcomes when Redis did what was asked, now or at an earlier attempt.
AGREED = (Outcome.SENT, Outcome.REPEATED)

#: ``takes_writes`` writes the state of an entry with this name, and removes it again.
_PROBE = ""


class Work:
    """Counts the running calls that must not lose their connection."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *exc_info: object) -> None:
        self.depth -= 1


class FencedStore:
    """The shared schedule of the ``beat`` election.

    A method that asks Redis raises ``StoreUnavailable`` if nobody knows what became of the request.
    Call it again then, with the same arguments.

    Args:
        runtime: the app's part in its elections.
        candidate: the candidate whose lease fences the writes; ``None`` if this process has none.
    """

    def __init__(self, runtime: AppRuntime, candidate: LocalCandidate | None) -> None:
        self._runtime = runtime
        self._candidate = candidate
        self._client: RedisClient | None = None
        self._store: ScheduleStore | None = None
        self.work = Work()
        if candidate is not None:
            self._client = runtime.redis.client_beside()
            self._store = ScheduleStore(self._run, runtime.redis.keys, BEAT)

    @property
    def is_shared(self) -> bool:
        """Whether there is a shared schedule at all."""
        return self._store is not None

    @property
    def node(self) -> str:
        """The name of this candidate."""
        return node_name(BEAT) if self._candidate is None else self._candidate.election.holder

    @property
    def projects_key(self) -> str:
        """The key of the descriptions that tell projects from each other."""
        return self._runtime.redis.keys.of("projects", BEAT)

    def load(self) -> Stored:
        """The states of all entries, the descriptions of projects, and the time of Redis."""
        return Stored({}, 0.0) if self._store is None else self._store.load()

    def state(self, entry: str) -> str:
        """The state of one entry; empty if there is none."""
        return "" if self._store is None else self._store.state(entry)

    def register(self, term: int, ownership: Ownership) -> bool:
        """Store this project's description and remove unused ones; return whether Redis agreed."""
        if self._store is None or (ownership.before == ownership.text and not ownership.unused):
            return True
        who = ownership
        token = self._token(term)
        outcome = self._store.register(token, who.id, who.before, who.text, who.unused)
        return self.has_agreed(outcome, term)

    def write(self, term: int, states: Mapping[str, tuple[str, str]]) -> bool:
        """Move states from ``old`` to ``new``, with no message; return whether Redis agreed."""
        if self._store is None or not states:
            return True
        return self.has_agreed(self._store.anchor(self._token(term), dict(states)), term)

    def forget(self, term: int, entries: Sequence[str]) -> bool:
        """Remove the states of ``entries``; return whether Redis agreed."""
        if self._store is None or not entries:
            return True
        return self.has_agreed(self._store.forget(self._token(term), entries), term)

    def dispatch(
        self, term: int, entry: str, old: str, new: str, pushes: Sequence[Push] = ()
    ) -> Answer:
        """Claim a tick: move its state from ``old`` to ``new`` and push its message, or do neither.

        A process without a shared schedule must not call this.
        """
        assert self._store is not None
        return self._store.dispatch(self._token(term), entry, old, new, pushes)

    def takes_writes(self, term: int) -> bool:
        """Whether Redis accepts writes with ``term`` at this moment; try it with a probe."""
        if self._store is None:
            return True
        token = self._token(term)
        self._store.forget(token, [_PROBE])
        outcome = self._store.anchor(token, {_PROBE: ("", "{}")})
        self._store.forget(token, [_PROBE])
        return outcome in AGREED

    def has_agreed(self, outcome: Outcome, term: int) -> bool:
        """Whether Redis did what was asked; if the lease was rejected, tell the election."""
        if outcome in AGREED:
            return True
        assert self._candidate is not None
        logger.info("%s: dispatch refused, term %d: %s", BEAT, term, outcome.value)
        if outcome is not Outcome.CLAIMED:
            gone = outcome is Outcome.MISSING
            self._runtime.participation.lease_rejected(self._candidate, term, gone=gone)
        return False

    def close(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            self._client.close()

    def _token(self, term: int) -> FencingToken:
        assert self._candidate is not None
        return FencingToken(self._candidate.election.requester.nonce, term)

    def _run(self, calls: Calls) -> list[Any]:
        assert self._client is not None
        with self.work:
            try:
                return self._client.run(calls)
            except StoreUnavailable:
                # A connection that was idle or cut fails at its first use, so try once more.
                # Each script that writes notices if its first run has done the work.
                return self._client.run(calls)
