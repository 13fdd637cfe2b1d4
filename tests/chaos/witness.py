"""What Redis holds of the run of tasks, and what was done in it to each message."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import defaultdict
from typing import Any

import redis

from tests.chaos.accounts import Start, Trace
from tests.chaos.moments import present
from tests.chaos.task_app import LEADER_QUEUE, RUNS

_STEP = 0.05
_ID = re.compile(rb'\\"id\\": \\"([0-9a-f-]{36})\\"')
_QUEUED = re.compile(rb'^\+[\d.]+ \[[^\]]*\] "[LR]PUSH" "([^"]*)" "(.*)"\r?$')
_TAKEN = re.compile(rb'^\+[\d.]+ \[([^\]]*)\] "HSET" "unacked" "([^"]*)" "(.*)"\r?$')
_LET_GO = re.compile(rb'^\+[\d.]+ \[[^\]]*\] "HDEL" "unacked" "([^"]*)"\r?$')
_TIMED = re.compile(rb'^\+[\d.]+ \[[^\]]*\] "ZADD" "unacked_index" "[^"]*" "([^"]*)"\r?$')


class Witness:
    """Reads what bodies have written, on a connection that no fault hits."""

    def __init__(self, port: int) -> None:
        self._client = redis.Redis(host="127.0.0.1", port=port, decode_responses=True)
        self._results = redis.Redis(host="127.0.0.1", port=port, db=1, decode_responses=True)
        self._cursor = "-"
        self.starts: list[Start] = []
        self.ended: set[str] = set()
        self.error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(10)
        self._client.close()
        self._results.close()

    def _run(self) -> None:
        try:
            while not self._over.wait(_STEP):
                self._look()
        except BaseException as exc:
            self.error = exc
            raise

    def _look(self) -> None:
        for cursor, line in self._client.xrange(RUNS, self._cursor, "+"):
            self._cursor = "(" + cursor
            if line["event"] == "end":
                self.ended.add(line["id"])
            else:
                self.starts.append(_start(line))

    def states(self, ids: set[str]) -> dict[str, str]:
        """Celery's own state of those of ``ids`` that have one."""
        wanted = sorted(ids)
        keys = [f"celery-task-meta-{task_id}" for task_id in wanted]
        found = self._results.mget(keys) if keys else []
        return {
            task_id: json.loads(meta)["status"]
            for task_id, meta in zip(wanted, found, strict=True)
            if meta
        }

    def have_an_hour_pass(self, older_than: float) -> None:
        """Have kombu deliver again what somebody took in hand so many seconds ago, or earlier.

        These are messages of plain queues. Their visibility timeout is an hour, and what a killed
        worker had would wait for that.
        """
        late = self._client.zrangebyscore("unacked_index", 1, present() / 1e6 - older_than)
        if late:
            self._client.zadd("unacked_index", dict.fromkeys(late, 0), xx=True)

    def at_rest(self, queues: list[str]) -> bool:
        """Whether no message waits, and none is in anybody's hands."""
        with self._client.pipeline(transaction=True) as pipe:
            for queue in queues:
                pipe.llen(queue)
            pipe.hlen("unacked")
            return not any(pipe.execute())


def _start(line: dict[str, str]) -> Start:
    return Start(
        id=line["id"],
        node=line["node"],
        attempt=int(line["try"]),
        checked=int(line["checked"]),
        at=int(line["at"]),
        holder=line["holder"],
        term=int(line["term"] or 0),
        held=line["state"] == "held",
        expires_at=int(line["expires_at"]) * 1000,
    )


class Journal:
    """Follows each message through Redis, by MONITOR: put into a queue, taken in hand."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.traces: dict[str, Trace] = defaultdict(Trace)
        self.error: BaseException | None = None
        #: Tags of messages that were fetched from the leader queue, and of those that kombu's
        #: visibility timeout can deliver again.
        self.fetched: set[bytes] = set()
        self.timed: set[bytes] = set()
        self._of_tag: dict[bytes, Trace] = {}
        self._over = False

    def __enter__(self) -> Journal:
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._socket.sendall(b"MONITOR\r\n")
        self._lines = self._socket.makefile("rb")
        assert self._lines.readline() == b"+OK\r\n"
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        try:
            for line in self._lines:
                self._read(line)
            if not self._over:
                raise ConnectionError("Redis has ended MONITOR")
        except BaseException as exc:
            self.error = exc
            raise

    def _read(self, line: bytes) -> None:
        if not any(name in line for name in (b"PUSH", b"HSET", b"HDEL", b"ZADD")):
            return
        if match := _QUEUED.match(line):
            for task_id in _ID.findall(match[2]):
                trace = self.traces[task_id.decode()]
                trace.queued += 1
                trace.in_hand = trace.acknowledged = False
                trace.for_leader = match[1].startswith(LEADER_QUEUE.encode())
                trace.queued_at = int(1_000_000 * float(line[1 : line.index(b" ")]))
        elif match := _TAKEN.match(line):
            if match[1].endswith(b" lua"):  # kombu writes it without a script
                self.fetched.add(match[2])
            for task_id in _ID.findall(match[3]):
                trace = self.traces[task_id.decode()]
                trace.taken += 1
                trace.in_hand, trace.acknowledged = True, False
                self._of_tag[match[2]] = trace
        elif match := _LET_GO.match(line):
            # A message that goes back is pushed first, and let go then.
            if (trace := self._of_tag.pop(match[1], None)) is not None and trace.in_hand:
                trace.in_hand, trace.acknowledged = False, True
        elif match := _TIMED.match(line):
            self.timed.add(match[1])


def wait_for_rest(
    witness: Witness, queues: list[str], open_: Any, patience: float, older_than: float
) -> str:
    """Wait until no id is open, or nothing can come any more; what stands in the way if not.

    Args:
        open_: how many ids are neither done nor skipped.
        patience: seconds without any progress after which there is no hope.
        older_than: seconds that a message of a plain queue is in hand before its hour is over.
    """
    calm, still_open, changed_at = 0, -1, time.monotonic()
    while time.monotonic() < changed_at + patience:
        now_open = open_()
        if not now_open:
            return ""
        if now_open != still_open:
            still_open, changed_at = now_open, time.monotonic()
        witness.have_an_hour_pass(older_than)
        calm = calm + 1 if witness.at_rest(queues) else 0
        if calm >= 10:  # all looks of some seconds: what is on its way is seen in one of them
            return ""
        time.sleep(0.3)
    return f"{still_open} ids still open {patience:g} s after the last that was not"
