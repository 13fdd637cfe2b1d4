"""Everything there is to see of elections, for people: who leads, who takes part, what waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from celery_leader.core.lease import Record
from celery_leader.errors import StoreUnavailable

from .history import PastLeadership, past_leaderships
from .in_flight import QueueKeys
from .lease_store import RedisLeaseStore
from .queued import Queued, queued_call, read_queued
from .register import Candidate, read_candidates, read_held
from .scripts import CANDIDATES, HELD, HISTORY
from .wire import read_announcement, read_record

#: A leadership takes two lines of history, and some more if orders were given.
_LINES_OF_ONE = 8


@dataclass(frozen=True, slots=True)
class Survey:
    """All there is to see of one election.

    Attributes:
        record: who leads, or led last; ``None`` if there is no record.
        candidates: the candidates heard of lately, the latest first.
        held: the nodes that are kept out of the race, each with the seconds that are left.
        leaderships: the leaderships that are remembered, the latest first.
        queued: its leader queue; ``None`` if its messages are not fetched from this Redis.
    """

    record: Record | None
    candidates: list[Candidate]
    held: dict[str, float]
    leaderships: list[PastLeadership]
    queued: Queued | None = None


def survey(
    store: RedisLeaseStore,
    elections: Sequence[str],
    count: int,
    queues: Mapping[str, QueueKeys] | None = None,
) -> dict[str, Survey]:
    """Look at ``elections`` in one round trip; at most ``count`` leaderships of each.

    ``queues``: the keys of the leader queues that are to be looked at, too.

    Raises:
        StoreUnavailable: Redis did not answer, or a key is damaged.
    """
    most = _LINES_OF_ONE * count + 1
    calls = [
        call
        for keys in map(store.keys.election, elections)
        for call in ((HISTORY, keys, [most]), (CANDIDATES, keys, []), (HELD, keys, []))
    ]
    looked_at = {name: keys for name, keys in (queues or {}).items() if name in elections}
    answers = store.client.run([*calls, *map(queued_call, looked_at.values())])
    of_queues = answers[len(calls) :]
    queued = {
        name: _queued(keys, answer)
        for (name, keys), answer in zip(looked_at.items(), of_queues, strict=True)
    }
    return {
        name: replace(_surveyed(name, count, answers[3 * i : 3 * i + 3]), queued=queued.get(name))
        for i, name in enumerate(elections)
    }


def _queued(keys: QueueKeys, answer: Any) -> Queued:
    if isinstance(answer, StoreUnavailable):
        # The rest of the election is still worth showing.
        return Queued(keys, error=str(answer))
    return read_queued(keys, answer)


def _surveyed(election: str, count: int, answers: Sequence[Any]) -> Survey:
    for answer in answers:
        if isinstance(answer, StoreUnavailable):
            raise answer
    (what, server_us, fields, lines), candidates, held = answers
    read_at = int(server_us) / 1e6
    record = None if what == b"missing" else read_record(fields, read_at)
    told = [read_announcement(election, cursor, flat) for cursor, flat in reversed(lines)]
    found = past_leaderships(told, record, read_at)
    return Survey(record, read_candidates(candidates), read_held(held), found[:count])
