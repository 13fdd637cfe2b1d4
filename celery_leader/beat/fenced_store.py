"""The shared schedule in Redis, as one leader reads and writes it.

Guaranteed: Redis writes only if the election's lease is this leader's, with the term that the
write names. Where a process always leads, there is no shared schedule: it reads as empty, and
writing to it does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.campaign import Campaign
from celery_leader.runtime.identity import node_name
from celery_leader.runtime.leadership import Leadership
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

logger = logging.getLogger(__name__)

#: What Redis says when it has done what was asked, now or at an earlier attempt.
AGREED = (Outcome.SENT, Outcome.REPEATED)

#: The state of an entry of this name is written and removed again.
_PROBE = ""


class Work:
    """Counts the calls under way that must not lose their connection."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *exc_info: object) -> None:
        self.depth -= 1


class FencedStore:
    """The shared schedule of the ``beat`` election.

    What asks Redis raises ``StoreUnavailable`` if nobody knows what became of it; then call it
    again with the same arguments.

    Args:
        leadership: the app's part in its elections.
        campaign: the campaign in whose name this writes; ``None`` if there is none to win.
    """

    def __init__(self, leadership: Leadership, campaign: Campaign | None) -> None:
        self._leadership = leadership
        self._campaign = campaign
        self._client: RedisClient | None = None
        self._store: ScheduleStore | None = None
        self.work = Work()
        if campaign is not None:
            self._client = leadership.redis.client_beside()
            self._store = ScheduleStore(self._run, leadership.redis.keys, BEAT)

    @property
    def is_shared(self) -> bool:
        """Whether there is a shared schedule at all."""
        return self._store is not None

    @property
    def node(self) -> str:
        """The name of this candidate."""
        return node_name(BEAT) if self._campaign is None else self._campaign.election.holder

    @property
    def projects_key(self) -> str:
        """The key that keeps what tells projects from each other."""
        return self._leadership.redis.keys.of("projects", BEAT)

    def load(self) -> Stored:
        """The states of all entries, and the projects."""
        return Stored({}, 0.0) if self._store is None else self._store.load()

    def state(self, entry: str) -> str:
        """The state of one entry; empty if there is none."""
        return "" if self._store is None else self._store.state(entry)

    def register(self, term: int, ownership: Ownership) -> bool:
        """Keep what tells this project from others; whether Redis agreed."""
        if self._store is None or (ownership.before == ownership.text and not ownership.unused):
            return True
        who = ownership
        token = self._token(term)
        outcome = self._store.register(token, who.id, who.before, who.text, who.unused)
        return self.has_agreed(outcome, term)

    def write(self, term: int, states: Mapping[str, tuple[str, str]]) -> bool:
        """Write ``(old, new)`` states that come with no message; whether Redis agreed to all."""
        if self._store is None or not states:
            return True
        return self.has_agreed(self._store.anchor(self._token(term), dict(states)), term)

    def forget(self, term: int, entries: Sequence[str]) -> bool:
        """Remove the states of entries; whether Redis agreed."""
        if self._store is None or not entries:
            return True
        return self.has_agreed(self._store.forget(self._token(term), entries), term)

    def dispatch(
        self, term: int, entry: str, old: str, new: str, pushes: Sequence[Push] = ()
    ) -> Answer:
        """Claim a tick: move the state from ``old`` to ``new`` and push its message, or neither."""
        assert self._store is not None
        return self._store.dispatch(self._token(term), entry, old, new, pushes)

    def takes_writes(self, term: int) -> bool:
        """Whether Redis takes writes in the name of ``term`` at this moment."""
        if self._store is None:
            return True
        token = self._token(term)
        self._store.forget(token, [_PROBE])
        outcome = self._store.anchor(token, {_PROBE: ("", "{}")})
        self._store.forget(token, [_PROBE])
        return outcome in AGREED

    def has_agreed(self, outcome: Outcome, term: int) -> bool:
        """Whether Redis did what was asked; if not, the election hears why."""
        if outcome in AGREED:
            return True
        assert self._campaign is not None
        logger.info("%s: dispatch refused, term %d: %s", BEAT, term, outcome.value)
        if outcome is not Outcome.CLAIMED:
            gone = outcome is Outcome.MISSING
            self._leadership.candidacies.lease_rejected(self._campaign, term, gone=gone)
        return False

    def close(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            self._client.close()

    def _token(self, term: int) -> FencingToken:
        assert self._campaign is not None
        return FencingToken(self._campaign.election.candidacy.nonce, term)

    def _run(self, calls: Calls) -> list[Any]:
        assert self._client is not None
        with self.work:
            try:
                return self._client.run(calls)
            except StoreUnavailable:
                # A connection that was idle or cut is noticed at its first use. All of these
                # scripts know what they have done when they come again.
                return self._client.run(calls)
