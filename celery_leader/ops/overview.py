"""One election at one moment: the values read from Redis, and the conclusions from them.

Values only: nothing here asks Redis. Anybody who can write to Redis may have written these
values, so they are shown and compared, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_leader.core.lease import Record
from celery_leader.core.timing import Timing
from celery_leader.core.watchdog import UNFIT
from celery_leader.store.history import PastLeadership
from celery_leader.store.queued import Queued
from celery_leader.store.register import Candidate

from .health import patience
from .words import iso

#: Settings that may differ from node to node.
_OWN = ("leader_priority",)


@dataclass(frozen=True, slots=True)
class Overview:
    """One election as it stood a moment ago.

    Attributes:
        election: its name.
        record: the record of the leader or of the last leader; ``None`` if there was none.
        candidates: the nodes that were in contact lately.
        held: each node that is kept out, candidate or not, and for how many seconds more.
        timing: the durations of this app's candidates.
        leaderships: the latest leaderships, the latest first.
        app: the identity of the app that looks.
        queued: its leader queue; ``None`` where its messages are not fetched from the Redis of
            the leases, and nothing is known of them.
    """

    election: str
    record: Record | None
    candidates: Sequence[Candidate]
    held: Mapping[str, float] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    leaderships: Sequence[PastLeadership] = ()
    app: str = ""
    queued: Queued | None = None

    @property
    def led(self) -> Record | None:
        """The record, if somebody leads."""
        return self.record if self.record is not None and self.record.led else None

    @property
    def contested(self) -> bool:
        """Whether anybody takes part or ever did."""
        return bool(self.record or self.candidates)

    @property
    def unfit(self) -> PastLeadership | None:
        """The last leadership, if its node gave it up because it was not fit to lead.

        ``None`` once that node is a candidate again.
        """
        ended = [past for past in self.leaderships if not past.lasts]
        if not ended or ended[0].reason not in UNFIT or self.has(ended[0].node):
            return None
        return ended[0]

    def has(self, node: str) -> bool:
        """Whether ``node`` is a candidate."""
        return any(each.node == node for each in self.candidates)

    def state(self, candidate: Candidate) -> str:
        """The state of ``candidate``: ``leader``, ``held``, ``silent`` or ``follower``."""
        if self.led is not None and _is_holder(candidate, self.led):
            return "leader"
        if candidate.held_for is not None:
            return "held"
        return "follower" if self.is_alive(candidate) else "silent"

    def is_alive(self, candidate: Candidate) -> bool:
        """Whether ``candidate`` was in contact with Redis lately enough."""
        return candidate.seen_ago <= patience(self.timing)

    def as_json(self) -> dict[str, Any]:
        """The election for scripts."""
        led, record, unfit = self.led, self.record, self.unfit
        return {
            "election": self.election,
            "leader": led.holder if led else None,
            "term": led.term if led else None,
            "seconds_left": round(led.remaining, 3) if led else None,
            "since": iso(led.elected_at) if led else None,
            "transitions": record.transitions if record else 0,
            "kept_for": record.successor if record and not led else None,
            "unfit": {"node": unfit.node, "reason": unfit.reason} if unfit else None,
            "candidates": [self._candidate_as_json(each) for each in self.candidates],
            "held": [
                {"node": node, "seconds_left": round(seconds, 3)}
                for node, seconds in sorted(self.held.items())
            ],
            "mixed_settings": mixed_settings(self.candidates),
            "queue": _queue_as_json(self.queued) if self.queued is not None else None,
        }

    def _candidate_as_json(self, candidate: Candidate) -> dict[str, Any]:
        info = candidate.info
        return {
            "node": candidate.node,
            "life": candidate.life or None,
            "state": self.state(candidate),
            "held": candidate.held_for is not None,
            "seconds_since_seen": round(candidate.seen_ago, 3),
            "priority": candidate.priority,
            "unfit": info.unfit or None if info else None,
            "steps_down_since": iso(info.steps_down_since)
            if info and info.steps_down_since
            else None,
            "waits_for": info.waits_for or None if info else None,
            "role": info.role if info else None,
            "host": info.host if info else None,
            "pid": info.pid if info else None,
            "scheduler": info.scheduler or None if info else None,
            "fenced": info.fenced if info and info.role == "beat" else None,
            "versions": dict(info.versions) if info else {},
            "settings": dict(info.settings) if info else {},
        }


def _queue_as_json(queued: Queued) -> dict[str, Any]:
    if queued.error:
        return {"name": queued.queue, "error": queued.error}
    return {
        "name": queued.queue,
        "error": None,
        "waiting": queued.waiting,
        "in_flight": queued.in_flight,
        "unreadable": queued.unreadable,
        "damaged": queued.damaged,
        "holders": [
            {
                "node": each.node,
                "life": each.life,
                "heard_of": each.heard_of,
                "messages": each.messages,
                "since": iso(each.since),
            }
            for each in queued.holders
        ],
        "longest_held": [
            {
                "task": each.task or None,
                "id": each.task_id or None,
                "node": each.node,
                "life": each.life,
                "since": iso(each.since),
                "seconds": round(queued.held_for(each), 3),
            }
            for each in queued.longest
        ],
    }


def mixed_settings(candidates: Iterable[Candidate]) -> dict[str, dict[str, list[str]]]:
    """The settings that differ and should not: for each name and value, the nodes with it."""
    found: dict[str, dict[str, list[str]]] = {}
    for each in candidates:
        for name, value in (each.info.settings if each.info else {}).items():
            if name not in _OWN:
                found.setdefault(name, {}).setdefault(str(value), []).append(each.node)
    return {name: values for name, values in sorted(found.items()) if len(values) > 1}


def _is_holder(candidate: Candidate, record: Record) -> bool:
    # A candidate that says nothing of itself is known by its name only.
    same_life = not candidate.life or not record.life or candidate.life == record.life
    return candidate.node == record.holder and same_life
