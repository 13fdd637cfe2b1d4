"""Writes what the tasks and probes of the fleet's app saw to Redis lists, which the tests check."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import Any

import redis
from celery import Celery, signals

from celery_leader import current_term, is_leader

RECORDS = "fleet:records"
BELIEFS = "fleet:beliefs"
GATE_PATIENCE = 60  # seconds

_PROBE_STEP = 0.01


class Recorder:
    """Writes the events of this process to Redis, which gives all processes' events one order."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: redis.Redis | None = None
        self._pid = 0

    @property
    def client(self) -> redis.Redis:
        """A client of this process, not of the one it was forked from."""
        if self._client is None or self._pid != os.getpid():
            self._client = redis.Redis.from_url(self._url, socket_timeout=None)
            self._pid = os.getpid()
        return self._client

    def saw(self, task: Any, event: str, election: str = "worker", **more: Any) -> dict[str, Any]:
        """Record that ``event`` happened in the body of ``task``, and what was believed."""
        term = current_term(election)
        at = self.moment()
        request = task.request
        seen = {
            "event": event,
            "task": task.name,
            "id": request.id,
            "node": request.hostname,
            "pid": os.getpid(),
            "leads": is_leader(election),
            "term": term,
            "term_after": current_term(election),
            "at": at,
            "hops": int((request.headers or {}).get("leader_hops") or 0),
            "headers": {k: v for k, v in (request.headers or {}).items() if _plain(v)},
            "argsrepr": request.get("argsrepr"),
            "kwargsrepr": request.get("kwargsrepr"),
            "eta": request.eta,
            "delivery": {k: v for k, v in (request.delivery_info or {}).items() if _plain(v)},
            **more,
        }
        self.client.rpush(RECORDS, json.dumps(seen))
        return seen

    def moment(self) -> int:
        """Microseconds, on the clock of Redis."""
        seconds, micros = self.client.time()
        return seconds * 1_000_000 + micros

    def wait_at_gate(self, gate: str) -> None:
        """Wait until the test opens ``gate``."""
        self.client.blpop([f"fleet:gate:{gate}"], timeout=GATE_PATIENCE)

    def believe_for_ever(self, app: Celery, election: str, node: str) -> None:
        """Record, again and again, that this process believes it leads, while it does."""
        app.set_current()  # in this thread
        pause = threading.Event()
        while not pause.wait(_PROBE_STEP):
            with contextlib.suppress(redis.RedisError):
                before = current_term(election)
                at = self.moment()
                # Led before and after with one term: led when Redis said what time it was.
                if before is not None and current_term(election) == before:
                    belief = {"election": election, "node": node, "term": before, "at": at}
                    self.client.rpush(BELIEFS, json.dumps(belief))


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | type(None))


def probe(app: Celery, recorder: Recorder) -> None:
    """Have the worker or beat of this process record, all the time, whether it believes it leads."""

    def start(election: str, node: str) -> None:
        threading.Thread(
            target=recorder.believe_for_ever, args=(app, election, node), daemon=True
        ).start()

    # After the pool has forked: a child must not inherit a half-done import of ours.
    @signals.worker_ready.connect(weak=False)
    def with_the_worker(sender: Any, **_: Any) -> None:
        start("worker", sender.hostname)

    @signals.beat_init.connect(weak=False)
    def with_the_beat(**_: Any) -> None:
        start("beat", f"beat:{os.getpid()}")
