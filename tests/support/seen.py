"""What Redis shows of the processes of a fleet: records, beliefs, elections, messages."""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import redis

from tests.support.fleet_app.extras import SIGNALLED
from tests.support.fleet_app.recorder import BELIEFS, RECORDS
from tests.support.process import Process
from tests.support.waiting import PATIENCE, wait_until


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an election's history."""

    kind: str
    node: str
    term: int
    at: int  # microseconds on the clock of Redis, cut to milliseconds


class Seen:
    """Reads what processes did, and waits for what they are to do.

    Args:
        config: that of their app; see ``Fleet``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        broker, record = config["broker"], config["record"]
        at = record if broker.startswith("sentinel:") else broker
        self.redis = redis.Redis.from_url(at, decode_responses=True)
        self.leases = self.redis
        self._recorded = redis.Redis.from_url(record, decode_responses=True)
        self.prefix = ""
        self.processes: list[Process] = []
        self._open = ExitStack()
        for connection in (self.redis, self._recorded):
            self._open.callback(connection.close)

    def look_for_leases_in(self, url: str) -> None:
        """Read elections from another Redis than the broker."""
        self.leases = redis.Redis.from_url(url, decode_responses=True)
        self._open.callback(self.leases.close)

    def open(self, gate: str) -> None:
        """Let a body go on that waits at ``gate``."""
        self._recorded.rpush(f"fleet:gate:{gate}", "open")

    # -- what tasks, probes and receivers of signals wrote down ------------------------

    def records(self, event: str | None = None, label: str | None = None) -> list[dict[str, Any]]:
        """What the tasks recorded, in order."""
        seen = [json.loads(text) for text in self._recorded.lrange(RECORDS, 0, -1)]
        return [
            each
            for each in seen
            if event in (None, each["event"]) and label in (None, each.get("label"))
        ]

    def saw(self, event: str, label: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until ``event`` was recorded ``count`` times for ``label``."""

        def enough() -> list[dict[str, Any]] | None:
            seen = self.records(event, label)
            return seen if len(seen) >= count else None

        return wait_until(enough, what=f"{count} x {event!r} of {label!r}") or []

    def signalled(self, name: str, **arguments: Any) -> list[dict[str, Any]]:
        """Wait until a signal of ``name`` with ``arguments`` was received; all of them."""

        def told() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in self.redis.lrange(SIGNALLED, 0, -1)]
            return [
                line
                for line in lines
                if line["signal"] == name and arguments.items() <= line.items()
            ]

        return wait_until(told, what=f"the signal {name} with {arguments}")

    def beliefs(self) -> list[dict[str, Any]]:
        """What the probes saw believed, in the order of the clock of Redis."""
        seen = [json.loads(text) for text in self._recorded.lrange(BELIEFS, 0, -1)]
        return sorted(seen, key=lambda belief: belief["at"])

    def assert_beliefs_never_overlapped(self) -> None:
        """No two processes ever believed, at one moment, that they lead one election."""
        everything = self.beliefs()
        assert everything, "the probes saw nobody lead"
        for election in {belief["election"] for belief in everything}:
            beliefs = [belief for belief in everything if belief["election"] == election]
            for before, after in itertools.pairwise(beliefs):
                assert after["term"] >= before["term"], f"{before}, and later {after}"
            holders = {(belief["term"], belief["node"]) for belief in beliefs}
            assert len({term for term, _ in holders}) == len(holders), holders

    # -- elections ---------------------------------------------------------------------

    def key(self, kind: str, election: str) -> str:
        """A key of the public layout."""
        namespace = self.config["conf"].get("task_default_queue", "celery")
        return f"{self.prefix}celery-leader:{namespace}:{kind}:{election}"

    def record(self, election: str = "worker") -> dict[str, str]:
        """The record of an election, as it stands."""
        return self.leases.hgetall(self.key("election", election))

    def history(self, election: str = "worker") -> list[Line]:
        """Who was elected and who resigned, in order."""
        return [
            Line(line["kind"], line["node"], int(line["term"]), int(at.split("-")[0]) * 1000)
            for at, line in self.leases.xrange(self.key("history", election))
            if line["kind"] in ("elected", "resigned", "reserved")
        ]

    def leader(self, election: str = "worker", *, other_than: Process | None = None) -> Process:
        """Wait until one of these processes leads, and return it."""

        def leading() -> Process | None:
            record = self.record(election)
            if record.get("state") != "held" or not self._still_runs(record):
                return None
            named = [p for p in self.processes if p.node == record["holder"] and p.alive]
            return named[0] if named and named[0] is not other_than else None

        process = wait_until(leading, what=f"a leader of {election}")
        assert process is not None
        return process

    def followers(self, election: str = "worker") -> list[Process]:
        """The processes that do not lead."""
        leader = self.leader(election)
        return [p for p in self.processes if p.alive and p is not leader]

    def takes_part(self, process: Process, election: str = "worker") -> None:
        """Wait until ``process`` has asked for the lease."""
        wait_until(
            lambda: self.leases.zscore(self.key("candidates", election), process.node),
            what=f"{process.name} to take part in {election}",
        )

    def renewed(self, times: int, election: str = "worker") -> dict[str, str]:
        """Wait until the leader has renewed its lease ``times`` times from now on."""
        before = self.record(election)
        goal = int(before["renewals"]) + times

        def enough() -> dict[str, str] | None:
            record = self.record(election)
            assert record["term"] == before["term"], f"another leads: {before}, then {record}"
            return record if int(record["renewals"]) >= goal else None

        return wait_until(enough, what=f"{times} renewals of {election}") or {}

    def outlives_its_lease(self, election: str = "worker") -> dict[str, str]:
        """Wait until the lease would have run out had the leader not renewed it since."""
        before = self.record(election)

        def later() -> dict[str, str] | None:
            record = self.record(election)
            assert record["term"] == before["term"], f"another leads: {before}, then {record}"
            assert record["state"] == "held", record
            return record if 1000 * self.moment() > int(before["expires_at"]) else None

        record = wait_until(later, what=f"the leader of {election} to outlive its lease") or {}
        assert self._still_runs(record), record
        return record

    def wait_without_leader(self) -> None:
        """Wait until the lease of the one that leads has run out."""
        record = self.record()
        wait_until(lambda: not self._still_runs(record), what="the lease to run out")

    def _still_runs(self, record: dict[str, str]) -> bool:
        return int(record["expires_at"]) > 1000 * self.moment()

    @property
    def lease(self) -> float:
        """How long a lease lasts, in seconds."""
        return float(self.config["conf"]["leader_lease_duration"])

    def moment(self) -> float:
        """Seconds, on the clock of the Redis that keeps the leases."""
        seconds, micros = self.leases.time()
        return float(seconds) + micros / 1_000_000

    # -- messages ----------------------------------------------------------------------

    def messages(self, queue: str = "celery") -> list[dict[str, Any]]:
        """The messages that wait in ``queue``, the oldest first: their headers."""
        raw = self.redis.lrange(f"{self.prefix}{queue}", 0, -1)
        return [json.loads(text)["headers"] for text in reversed(raw)]

    def arrived(
        self, count: int, queue: str = "celery", timeout: float = PATIENCE
    ) -> list[dict[str, Any]]:
        """Wait until ``count`` messages wait in ``queue``."""
        wait_until(lambda: self._queued(queue) >= count, timeout, f"{count} messages in {queue}")
        return self.messages(queue)

    def of(self, task: str | None = None) -> list[dict[str, Any]]:
        """The headers of the messages in the default queue, of one task if it is named."""
        return [m for m in self.messages() if task in (None, m["task"])]

    def had(self, count: int, task: str | None = None) -> None:
        """Wait until ``count`` messages were dispatched, of ``task`` if it is named."""
        wait_until(
            lambda: self._queued() >= count and len(self.of(task)) >= count,
            what=f"{count} messages of {task or 'any'}",
        )

    def _queued(self, queue: str = "celery") -> int:
        """How many messages wait, which costs less than to read them."""
        return int(self.redis.llen(f"{self.prefix}{queue}"))

    def more(self, count: int, task: str | None = None) -> None:
        """Wait until ``count`` further messages were dispatched, of ``task`` if it is named."""
        self.had(len(self.of(task)) + count, task)

    def senders(self, task: str | None = None) -> list[int]:
        """The pids of who sent them."""
        return [int(m["origin"].removeprefix("gen").split("@")[0]) for m in self.of(task)]

    def ticks(self, task: str | None = None) -> list[str]:
        """Their due times, no two of which may be alike."""
        ticks = [message["leader_tick"] for message in self.of(task)]
        assert len(set(ticks)) == len(ticks), ticks
        return ticks

    def is_listened_to(self) -> None:
        """Wait until somebody listens to the event stream; only workers with gossip do, too."""
        wait_until(self.redis.pubsub_numpat, what="somebody to listen to events")
