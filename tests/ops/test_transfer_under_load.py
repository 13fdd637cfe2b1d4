"""``celery leader transfer`` while thousands of tasks run: nothing is lost, nothing runs twice.

How long nobody led is judged beside how long this machine takes, in the same moments, to have
one process answer another over Redis; ``TRANSFERS=25 pytest -s`` measures more of it.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import itertools
import json
import os
import statistics
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import command
from tests.support.fleet import LASTING, Fleet
from tests.support.fleet_app.recorder import RECORDS
from tests.support.waiting import wait_until

ROUNDS = int(os.environ.get("TRANSFERS", "3"))
BACKLOG = 400  # messages that wait in the leader queue at every moment
ENTRIES = {f"tick{i}": {"task": "plain", "args": [f"tick{i}"], "every": 0.2} for i in range(10)}


class Sender:
    """Keeps the leader queue filled, from ``with`` to its end."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0

    def __enter__(self) -> Sender:
        self._thread.start()
        wait_until(lambda: self.sent >= BACKLOG, what="the backlog")
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        lead = self._fleet.app.tasks["fleet.lead"]
        while not self._over.wait(0.02):
            for _ in range(BACKLOG - self._fleet.redis.llen("celery.leader")):
                lead.delay(f"job {self.sent}")
                self.sent += 1


class Echo:
    """Answers over Redis whoever calls, as a candidate does that waits for news."""

    def __init__(self, fleet: Fleet) -> None:
        self._client = fleet.redis
        self._waiting = fleet.leases.from_url(fleet.config["broker"], decode_responses=True)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        self._waiting.close()

    def seconds(self) -> float:
        """From a call to its answer, by the clock of Redis."""
        called = self._client.xadd("echo:calls", {"call": "1"})

        def answered() -> str | None:
            found = self._client.xrevrange("echo:answers", count=1)
            return found[0][0] if found and found[0][1]["to"] == called else None

        answer = wait_until(answered, what="an answer")
        assert answer is not None
        return (_millis(answer) - _millis(called)) / 1000

    def _run(self) -> None:
        seen = "0"
        while not self._over.is_set():
            for _, calls in self._waiting.xread({"echo:calls": seen}, block=100):
                for seen, _ in calls:
                    self._waiting.xadd("echo:answers", {"to": seen})


def _millis(cursor: str) -> int:
    return int(cursor.partition("-")[0])


def transfer(fleet: Fleet, election: str, nodes: list[str]) -> float:
    """Move the lead to the next node, and return for how many seconds nobody led."""
    holder = fleet.record(election)["holder"]
    successor = nodes[(nodes.index(holder) + 1) % len(nodes)]
    done = command.run(fleet.app, "transfer", successor, "--election", election, "--json")
    assert (done.returncode, json.loads(done.stdout)["leader"]) == (0, successor), done
    told = command.run(fleet.app, "history", "--election", election, "--limit", "2", "--json")
    later, former = json.loads(told.stdout)[election]
    assert (former["reason"], former["successor"]) == ("transferred", successor)
    moments = [datetime.datetime.fromisoformat(at) for at in (former["to"], later["from"])]
    return (moments[1] - moments[0]).total_seconds()


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_while_the_lead_is_moved_under_load(new_fleet: Any) -> None:
    fleet = new_fleet(conf={**LASTING, "task_ignore_result": True}, schedule=ENTRIES)
    workers = [p.node for p in fleet.workers("w1", "w2", "w3")]
    beats = [p.node for p in fleet.beats("b1", "b2")]
    gaps: dict[str, list[float]] = collections.defaultdict(list)
    usual: list[float] = []
    with Sender(fleet) as sender, Echo(fleet) as echo:
        for election, nodes in itertools.islice(
            itertools.cycle([("worker", workers), ("beat", beats)]), 2 * ROUNDS
        ):
            before = sender.sent
            gaps[election].append(transfer(fleet, election, nodes))
            usual.append(echo.seconds())
            wait_until(lambda: sender.sent > before, what="the load to go on")
    for process in fleet.processes:
        if process.name.startswith("b"):
            process.terminate()
    wait_until(lambda: jobs_done(fleet) >= sender.sent, 300, what="every job to be done")
    ran = fleet.records("ran")
    jobs = collections.Counter(each["label"] for each in ran if each["task"] == "fleet.lead")
    assert jobs == {f"job {i}": 1 for i in range(sender.sent)}
    assert all(each["leads"] for each in ran if each["task"] == "fleet.lead")
    due = states(fleet)
    wait_until(lambda: ticks(fleet).total() >= sum(due.values()), 60, what="every tick to have run")
    assert ticks(fleet) == due
    report(sender.sent, sum(due.values()), gaps)
    for seconds in gaps.values():
        # Who does not hear of it, and looks now and then, takes longer.
        assert statistics.median(seconds) < 0.1 + 10 * statistics.median(usual), (gaps, usual)


def jobs_done(fleet: Fleet) -> int:
    return sum(b'"fleet.lead"' in line for line in raw(fleet))


def raw(fleet: Fleet) -> Iterator[bytes]:
    for line in fleet.redis.lrange(RECORDS, 0, -1):
        yield line.encode()


def ticks(fleet: Fleet) -> collections.Counter[str]:
    """How often each entry of the schedule ran, no tick of it twice."""
    ran = [each for each in fleet.records("ran") if each["task"] == "fleet.plain"]
    once = collections.Counter((each["label"], each["headers"]["leader_tick"]) for each in ran)
    assert set(once.values()) <= {1}, once.most_common(3)
    return collections.Counter(each["label"] for each in ran)


def states(fleet: Fleet) -> dict[str, int]:
    """How often each entry was sent, by what stands in Redis beside the lease."""
    stored = fleet.redis.hgetall(fleet.key("schedule", "beat"))
    return {entry: json.loads(state)["total_run_count"] for entry, state in stored.items()}


def report(jobs: int, dispatches: int, gaps: dict[str, list[float]]) -> None:
    print(f"\n{jobs} leader-only jobs, {dispatches} dispatches")
    for election, seconds in gaps.items():
        with contextlib.suppress(statistics.StatisticsError):
            print(
                f"{election}: {len(seconds)} transfers, nobody led for"
                f" {1000 * statistics.median(seconds):.0f} ms (median),"
                f" {1000 * max(seconds):.0f} ms (most)"
            )
