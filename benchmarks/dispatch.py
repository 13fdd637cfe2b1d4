"""Dispatch rates, as ratios in one run: ``python -m benchmarks.dispatch``.

Every entry is due at once; each scheduler's own ``tick`` sends them to one Redis. Stock beat
compares the whole schedule at every tick, so with many entries its rate is taken over the
first few hundred only. Each measurement is repeated and the best of each is compared.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, beat
from celery.schedules import schedule

from celery_leader import install
from celery_leader.beat import LeaderScheduler
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

_MOST = 600  # dispatches measured for a scheduler that would take minutes for all of them
_BATCH = 20  # messages sent in one turn, where two ways to send take turns
_HOUR = 3600.0


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few entries, once")
    quick = parser.parse_args().quick
    sizes = (100, 1000) if quick else (100, 1000, 10_000)
    rounds = 1 if quick else 3
    print("| entries due | stock beat /s | celery-redbeat /s | `-S leader` /s | leader : stock |")
    print("|---|---|---|---|---|")
    for size in sizes:
        rates = {
            name: max(rate(make, size) for _ in range(rounds))
            for name, make in (("stock", stock), ("redbeat", redbeat), ("leader", leader))
        }
        print(
            f"| {size} | {rates['stock']:.0f} | {rates['redbeat'] or float('nan'):.0f}"
            f" | {rates['leader']:.0f} | {rates['leader'] / rates['stock']:.2f} |",
            flush=True,
        )
    plain, fenced, ratio = plain_against_fenced(batches=10 if quick else 60)
    print(f"\nPlain publish {plain:.0f} /s, fenced dispatch {fenced:.0f} /s: {ratio:.2f}")
    with RedisServer() as server:
        print(f"Taking over 10,000 entries: {takeover(server, 10_000):.2f} s")
        print(f"Idle with 10,000 entries: {idle_cpu(server, 10_000):.2%} of one CPU")


def rate(make: Callable[[Celery, int], Any], size: int) -> float:
    with RedisServer() as server:
        app = app_on(server.url)
        scheduler = make(app, size)
        if scheduler is None:
            return 0.0
        with server.client() as client:
            began = time.perf_counter()
            while not client.llen("celery"):
                began = time.perf_counter()
                scheduler.tick()
            if client.llen("celery") >= size:  # redbeat sends all that is due in one tick
                return float(client.llen("celery") / (time.perf_counter() - began))
            goal = min(size, _MOST) if not isinstance(scheduler, LeaderScheduler) else size
            before, started = client.llen("celery"), time.perf_counter()
            while client.llen("celery") < goal:
                for _ in range(20):
                    scheduler.tick()
            rate = (client.llen("celery") - before) / (time.perf_counter() - started)
        scheduler.close()
        scheduler.close()
        return float(rate)


def plain_against_fenced(batches: int) -> tuple[float, float, float]:
    """What kombu's own transport publishes per second, what ``-S leader`` does, and the ratio.

    In turns of few messages, so that whatever else the machine does slows down both; medians.
    """
    with RedisServer() as server:
        app = app_on(server.url)
        scheduler = leader(app, (batches + 1) * _BATCH)
        with app.producer_or_acquire() as producer, server.client() as client:
            while client.llen("celery") < _BATCH:
                scheduler.tick()
                app.send_task("bench", producer=producer)
            turns = [
                (
                    _batches_per_second(lambda: app.send_task("bench", producer=producer)),
                    _batches_per_second(scheduler.tick),
                )
                for _ in range(batches)
            ]
            sent = client.llen("celery")
        assert sent >= 2 * batches * _BATCH, "a tick that sent nothing was measured"
        scheduler.close()
        scheduler.close()
        app.close()
    plain, fenced = (_BATCH * statistics.median(rates) for rates in zip(*turns, strict=True))
    return plain, fenced, statistics.median(fenced / plain for plain, fenced in turns)


def _batches_per_second(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(_BATCH):
        act()
    return 1 / (time.perf_counter() - started)


def app_on(url: str) -> Celery:
    app = Celery("bench", broker=url, set_as_current=False)
    app.conf.update(redbeat_redis_url=url, redbeat_lock_key=None, beat_max_loop_interval=1)
    return install(app)


def _entries(app: Celery, size: int, ago: float) -> dict[str, dict[str, Any]]:
    last = app.now() - datetime.timedelta(seconds=ago)
    every = schedule(_HOUR, app=app)
    return {f"e{i}": {"task": "bench", "schedule": every, "last_run_at": last} for i in range(size)}


def stock(app: Celery, size: int) -> Any:
    app.conf.beat_schedule = _entries(app, size, 2 * _HOUR)
    return beat.Scheduler(app)


def leader(app: Celery, size: int) -> Any:
    app.conf.beat_schedule = _entries(app, size, 2 * _HOUR)
    return LeaderScheduler(app)


def leased_beat(app: Celery, size: int) -> Any:
    from celery_leased_beat.scheduler import LeasedScheduler

    app.conf.update(CELERY_LEASE_URL=app.conf.broker_url)
    app.conf.beat_schedule = _entries(app, size, 2 * _HOUR)
    return LeasedScheduler(app)


def redbeat(app: Celery, size: int) -> Any:
    try:
        from redbeat import RedBeatScheduler, RedBeatSchedulerEntry
    except ImportError:
        return None
    last = app.now() - datetime.timedelta(seconds=2 * _HOUR)
    for i in range(size):
        RedBeatSchedulerEntry(
            f"e{i}", "bench", schedule(_HOUR, app=app), app=app, last_run_at=last
        ).save()
    return RedBeatScheduler(app)


def takeover(server: RedisServer, size: int) -> float:
    """Seconds from the election to being ready to dispatch, with the state of a predecessor."""
    for first in (True, False):
        app = app_on(server.url)
        app.conf.beat_schedule = _entries(app, size, 0)
        scheduler = LeaderScheduler(app)
        wait_until(lambda s=scheduler: s.leading_term(), what="the election")
        started = time.perf_counter()
        assert scheduler.take_over(scheduler.leading_term())
        taken = time.perf_counter() - started
        scheduler.close()
        scheduler.close()
        if not first:
            return taken
    raise AssertionError


def idle_cpu(server: RedisServer, size: int) -> float:
    """The share of one CPU that a leading beat uses with nothing due, over five seconds."""
    app = app_on(server.url)
    app.conf.beat_schedule = _entries(app, size, 0)
    scheduler = LeaderScheduler(app)
    wait_until(lambda: scheduler.leading_term(), what="the election")
    scheduler.tick()
    cpu, wall = time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < 5:
        time.sleep(min(scheduler.tick() or 0, 1))
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    scheduler.close()
    scheduler.close()
    return share


if __name__ == "__main__":
    main()
