"""What Redis holds of a demo, read as it is: nothing here is what a worker believes of itself.

Each line of a stream carries the server's time of its writing in its id, so that a
run and an election can be compared by one clock.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any

import redis

QUEUES = ("celery", "celery.leader")


@dataclass(frozen=True, slots=True)
class Event:
    """One line of an election's history."""

    at: int  # ms, by the server's clock
    kind: str
    node: str
    term: int


@dataclass(frozen=True, slots=True)
class Run:
    """The start or the end of one task's body, as the body itself wrote it down first."""

    at: int  # ms, by the server's clock
    event: str
    task: str
    id: str
    tick: str
    term: int
    node: str


@dataclass(frozen=True, slots=True)
class Entry:
    """The state of one schedule entry: how many ticks lie behind it, when the next is due."""

    sequence: int
    due: str

    @property
    def dispatched(self) -> int:
        """Ticks dispatched; the first state is written when the entry is first seen."""
        return self.sequence - 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything, at one moment."""

    now: int  # ms, by the server's clock
    runs: tuple[Run, ...]
    history: dict[str, tuple[Event, ...]]
    records: dict[str, dict[str, str]]
    candidates: dict[str, tuple[str, ...]]
    schedule: dict[str, Entry]
    waiting: int  # messages in queues
    unacknowledged: int  # messages that a worker has in hand, or had when it died

    def leader(self, election: str) -> str | None:
        """Who holds the lease of ``election``."""
        record = self.records[election]
        if record.get("state") != "held" or int(record["expires_at"]) <= self.now:
            return None
        return record["holder"]

    def seconds_left(self, election: str) -> float:
        """How long that lease still runs."""
        return max(0, int(self.records[election].get("expires_at", 0)) - self.now) / 1000

    def started(self) -> list[Run]:
        """Every start of a body."""
        return [run for run in self.runs if run.event == "started"]

    def done(self) -> set[str]:
        """The ids of the tasks whose bodies have ended."""
        return {run.id for run in self.runs if run.event == "done"}

    def dispatched(self) -> int:
        """Ticks dispatched, of all entries."""
        return sum(entry.dispatched for entry in self.schedule.values())


class Witness:
    """Reads the evidence, again and again, and remembers when each tick was due."""

    def __init__(self, client: redis.Redis, key_prefix: str) -> None:
        self._client = client
        self._prefix = key_prefix
        #: For each entry, by sequence number: when the tick was due.
        self.due: dict[str, dict[int, str]] = {}

    def look(self) -> Evidence:
        """Everything, in one transaction."""
        elections = ("beat", "worker")
        ours = f"{self._prefix}celery-leader:celery"
        with self._client.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.xrange(f"{self._prefix}runs")
            pipe.hgetall(f"{ours}:schedule:beat")
            for name in elections:
                pipe.xrange(f"{ours}:history:{name}")
                pipe.hgetall(f"{ours}:election:{name}")
                pipe.zrange(f"{ours}:candidates:{name}", 0, -1)
            pipe.hlen(f"{self._prefix}unacked")
            for queue in QUEUES:
                pipe.llen(f"{self._prefix}{queue}")
            now, runs, schedule, *rest = pipe.execute()
        parts, (unacknowledged, *waiting) = rest[:6], rest[6:]
        evidence = Evidence(
            now=now[0] * 1000 + now[1] // 1000,
            runs=tuple(_run(*line) for line in runs),
            history={
                name: tuple(_event(*line) for line in lines)
                for name, lines in zip(elections, parts[0::3], strict=True)
            },
            records=dict(zip(elections, parts[1::3], strict=True)),
            candidates={
                name: tuple(nodes) for name, nodes in zip(elections, parts[2::3], strict=True)
            },
            schedule={name: _entry(state) for name, state in schedule.items()},
            waiting=sum(waiting),
            unacknowledged=unacknowledged,
        )
        for name, entry in evidence.schedule.items():
            self.due.setdefault(name, {})[entry.sequence] = entry.due
        return evidence


def seconds(tick: str) -> float:
    """A due time, as headers and states spell it, in seconds since the epoch."""
    return datetime.datetime.fromisoformat(tick).timestamp()


def _ms(stream_id: str) -> int:
    return int(stream_id.split("-")[0])


def _event(stream_id: str, fields: dict[str, str]) -> Event:
    return Event(_ms(stream_id), fields["kind"], fields["node"], int(fields["term"]))


def _run(stream_id: str, fields: dict[str, str]) -> Run:
    return Run(
        at=_ms(stream_id),
        event=fields["event"],
        task=fields["task"],
        id=fields["id"],
        tick=fields["tick"],
        term=int(fields["term"] or 0),
        node=fields["node"],
    )


def _entry(state: str) -> Entry:
    parsed: dict[str, Any] = json.loads(state)
    return Entry(sequence=parsed["sequence"], due=parsed["due"])
