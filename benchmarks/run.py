"""The figures of the README, measured on real processes: ``python -m benchmarks.run``.

``--quick`` measures each a few times only. Prints a table; asserts nothing about time.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import redis
from celery import Celery

from celery_leader import LeaderElection
from celery_leader.store.scripts import RENEW
from tests.support.fleet import Fleet, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LEASE = 3.0  # seconds


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    quick = parser.parse_args().quick
    print(
        f"celery {celery.__version__}, redis-py {redis.__version__},"
        f" Python {platform.python_version()}, lease {LEASE:g} s"
    )
    print("| what | figure | wanted |")
    print("|---|---|---|")
    for measure in (
        is_leader_cost,
        lambda: task_cost(200 if quick else 1000),
        lambda: throughput(3 if quick else 9),
        lambda: idle_queues(5 if quick else 20),
        lambda: handover("worker", 3 if quick else 15),
        lambda: handover("beat", 3 if quick else 15),
        lambda: failover(1 if quick else 5),
        connections,
        lambda: candidate_cost(3 if quick else 10),
    ):
        for what, figure, wanted in measure():
            print(f"| {what} | {figure} | {wanted} |", flush=True)


Rows = list[tuple[str, str, str]]


@contextlib.contextmanager
def new_fleet(**config: Any) -> Iterator[Fleet]:
    """A fleet over a Redis of its own."""
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer() as server,
        Fleet(
            Path(directory), server.url, conf={"leader_lease_duration": LEASE}, **config
        ) as fleet,
    ):
        yield fleet


def is_leader_cost() -> Rows:
    """What ``is_leader()`` costs in a pool process."""
    with new_fleet() as fleet:
        fleet.worker("w1", "-I", "benchmarks.tasks").says(" ready.")
        fleet.leader()
        result = fleet.stranger.send_task("bench.is_leader").get(timeout=60)
    assert result["leads"]
    return [("`is_leader()` in a pool process", f"{result['ns']:.0f} ns", "< 1000 ns")]


def task_cost(tasks: int) -> Rows:
    """What being leader-only costs a task: its guard, its forwarding, and commands of Redis."""
    with new_fleet() as fleet:
        fleet.worker("w1", "-I", "benchmarks.tasks").says(" ready.")
        leader = fleet.leader()
        fleet.takes_part(fleet.worker("w2", "-P", "solo").says(" ready."))
        guard = fleet.stranger.send_task("bench.guard", queue="celery.leader").get(timeout=60)
        body = fleet.stranger.send_task("bench.body", queue="celery.leader").get(timeout=60)
        plain = _commands(fleet, "fleet.plain", leader.name, tasks)
        led = _commands(fleet, "fleet.lead", "celery.leader", tasks)
        forwarded = _commands(fleet, "fleet.lead", "w2", tasks)
    return [
        ("the guard of a leader-only body, on the leader", f"{guard:.0f} ns", "< 2000 ns"),
        ("knowing a leader-only body by its term", f"{body:.0f} ns", "< 3000 ns"),
        (
            "round trips to Redis of a leader-only task beyond a plain one's",
            f"{(led['reads'] - plain['reads']) / tasks:.2f} over {tasks} tasks",
            "<= 0",
        ),
        (
            "publishes of a forwarded task",
            f"{(forwarded['lpush'] - plain['lpush']) / tasks:.2f} over {tasks} tasks",
            "1 more",
        ),
    ]


def _commands(fleet: Fleet, task: str, queue: str, tasks: int) -> collections.Counter[str]:
    """What Redis did for ``tasks`` tasks, sent to ``queue``, until all ran.

    That is ``lpush``, its pushes, and ``reads``, how often it read from a client. Polling and
    renewing are in it, and the same in all cases.
    """

    def counts() -> collections.Counter[str]:
        pushes = fleet.redis.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"]
        # What clients send at once is one read; what a script does is none.
        reads = fleet.redis.info("stats")["total_reads_processed"]
        return collections.Counter(lpush=pushes, reads=reads)

    before = counts()
    results = [
        fleet.stranger.send_task(task, queue=queue, ignore_result=True) for _ in range(tasks)
    ]
    ids = {result.id for result in results}
    wait_until(
        lambda: ids <= {seen["id"] for seen in fleet.records("ran")}, 300, f"{tasks} of {task}"
    )
    after = counts()
    after.subtract(before)
    return after


_MANY = 2000  # tasks in one round


def throughput(rounds: int) -> Rows:
    """Tasks a second of a leader beside those of a plain worker, two processes each, in turn.

    A worker is stopped while its queue is filled, so the sender is not what is measured.
    """
    rates: dict[str, list[float]] = {"leader": [], "plain": []}
    with new_fleet() as fleet:
        fleet.config["conf"]["leader_lease_duration"] = 300.0
        how = ("-c", "2", "-I", "benchmarks.tasks")
        leader = fleet.worker("leader", *how, "-Q", "leader").says("consuming from celery.leader")
        plain = fleet.worker("plain", *how, install=False).says(" ready.")
        for _ in range(rounds):
            for worker, task, queue in (
                (leader, "bench.nothing", "celery.leader"),
                (plain, "bench.plain", "plain"),
            ):
                rates[worker.name].append(_tasks_a_second(fleet, worker, task, queue))
    ratio = statistics.median(a / b for a, b in zip(rates["leader"], rates["plain"], strict=True))
    figures = {name: f"{statistics.median(found):,.0f}" for name, found in rates.items()}
    return [
        (
            "tasks a second of a leader with `-c 2`, of those of a plain worker",
            f"{ratio:.2f}; {figures['leader']} and {figures['plain']}, median of {rounds} rounds",
            ">= 1",
        )
    ]


def _tasks_a_second(fleet: Fleet, worker: Process, task: str, queue: str) -> float:
    worker.freeze()
    for _ in range(_MANY):
        fleet.stranger.send_task(task, queue=queue, ignore_result=True)
    began = time.monotonic()
    worker.thaw()
    wait_until(
        lambda: not fleet.redis.llen(queue) and not fleet.redis.hlen("unacked"),
        120,
        f"{_MANY} of {task}",
    )
    return _MANY / (time.monotonic() - began)


def idle_queues(seconds: int) -> Rows:
    """Commands a second for a leader queue and for a worker's own queues, while nothing comes."""
    counts: collections.Counter[str] = collections.Counter()
    with new_fleet() as fleet:
        fleet.worker("w1", conf={"leader_elections": ["worker"]}).says("consuming from")
        end = time.monotonic() + seconds
        with fleet.redis.monitor() as monitor:
            for line in monitor.listen():
                if time.monotonic() > end:
                    break
                if line["client_type"] == "lua":
                    continue
                if line["command"].startswith("BLMOVE") or ":unreadable:" in line["command"]:
                    counts["leader queue"] += 1
                elif line["command"].startswith("BRPOP"):
                    counts["own queues"] += 1
    return [
        (
            "commands a second for a leader queue in which nothing comes",
            f"{counts['leader queue'] / seconds:.2f}; `BRPOP` {counts['own queues'] / seconds:.2f}",
            "no more than `BRPOP`",
        )
    ]


def handover(election: str, times: int) -> Rows:
    """From the resignation to the next election, and to the first leader-only task."""
    elected, started = [], []
    with new_fleet() as fleet:
        start: Callable[[str], Any] = fleet.worker if election == "worker" else fleet.beat
        for name in ("a", "b"):
            fleet.takes_part(start(name), election)
        fleet.leader(election)
        with _leader_only_load(fleet) if election == "worker" else contextlib.nullcontext():
            for number in range(times):
                old = fleet.leader(election)
                old.terminate()
                new = fleet.leader(election, other_than=old)
                resigned, succeeded = fleet.history(election)[-2:]
                assert (resigned.kind, succeeded.kind) == ("resigned", "elected")
                elected.append((succeeded.at - resigned.at) / 1000)
                if election == "worker":
                    started.append((_first_run(fleet, new.node, succeeded.at) - resigned.at) / 1000)
                fleet.takes_part(start(f"c{number}"), election)
    rows = [
        (f"clean handover, {election}: resigned to elected", _spread(elected), "median < 100 ms")
    ]
    if started:
        what = "clean handover, worker: resigned to the first leader-only task"
        rows.append((what, _spread(started), "median < 100 ms"))
    return rows


def failover(times: int) -> Rows:
    """From SIGKILL to the next election."""
    seconds = []
    with new_fleet() as fleet:
        for name in ("a", "b"):
            fleet.takes_part(fleet.worker(name))
        for number in range(times):
            old = fleet.leader()
            fleet.renewed(1)
            sec, micro = fleet.redis.time()
            old.kill()
            fleet.leader(other_than=old)
            seconds.append((fleet.history()[-1].at / 1e6) - (sec + micro / 1e6))
            fleet.takes_part(fleet.worker(f"c{number}"))
    return [
        (
            "failover after SIGKILL, worker",
            f"worst {max(seconds):.2f} s of {times} = lease {max(seconds) - LEASE:+.2f} s",
            "<= lease + 0.5 s",
        )
    ]


def connections() -> Rows:
    """Redis connections of one worker and one beat, with and without this package."""
    rows = []
    for what in ("worker", "beat"):
        counts = {}
        for installed in (False, True):
            with new_fleet(install=installed) as fleet:
                if what == "worker":
                    fleet.worker("w1").says(" ready.")
                else:
                    fleet.beat(
                        "b1",
                        *(() if installed else ("-S", "celery.beat:Scheduler")),
                        schedule={"every": {"task": "plain", "every": 0.2}},
                    ).says("Sending")
                if installed:
                    fleet.leader(what)
                if what == "beat":
                    fleet.arrived(5)
                counts[installed] = _connections(fleet)
        figure = f"{counts[True]} with, {counts[False]} without"
        rows.append((f"Redis connections of a {what}", figure, "at most one more"))
    return rows


def candidate_cost(leases: int) -> Rows:
    """Commands that a follower and a leader send per renew interval, as Redis sees them."""
    renewal = " ".join(RENEW.by_sha([], [])[:2])
    intervals = round(leases * 2.5)
    with RedisServer() as server, contextlib.ExitStack() as stack:
        apps = [Celery(f"app{i}", broker=server.url, set_as_current=False) for i in range(2)]
        for app in apps:
            app.conf.leader_lease_duration = LEASE
        for app in apps:
            stack.enter_context(LeaderElection(app, "bench"))
        client = stack.enter_context(server.client())
        by_address: collections.Counter[str] = collections.Counter()
        renewals: collections.Counter[str] = collections.Counter()
        with client.monitor() as monitor:
            for line in monitor.listen():
                if line["client_type"] == "lua":
                    continue
                address = f"{line['client_address']}:{line['client_port']}"
                by_address[address] += 1
                if line["command"].startswith(renewal):
                    renewals[address] += 1
                    if renewals[address] > intervals:
                        break
    leading, following = by_address[address], sum(by_address.values()) - by_address[address]
    return [
        (
            f"commands of a {what} per renew interval",
            f"{sent / intervals:.2f} over {intervals} intervals",
            wanted,
        )
        for what, sent, wanted in (("follower", following, "<= 1"), ("leader", leading, "2"))
    ]


@contextlib.contextmanager
def _leader_only_load(fleet: Fleet) -> Iterator[None]:
    """Leader-only tasks, sent all the time."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.02):
            fleet.app.tasks["fleet.lead"].delay("load")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _first_run(fleet: Fleet, node: str, since: int) -> int:
    def runs() -> list[int]:
        return [r["at"] for r in fleet.records("ran") if r["node"] == node and r["at"] >= since]

    return min(wait_until(runs, what=f"a leader-only task on {node}"))


def _connections(fleet: Fleet) -> int:
    me = fleet.redis.client_id()
    others = fleet.redis.client_list()
    return len([client for client in others if int(client["id"]) != me])


def _spread(millis: list[float]) -> str:
    return f"median {statistics.median(millis):.0f} ms, worst {max(millis):.0f} ms of {len(millis)}"


if __name__ == "__main__":
    main()
