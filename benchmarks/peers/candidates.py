"""Candidates of one contender as threads: ``python -m … NAME COUNT URL``, until it is killed.

All run what the contender's own nodes run, but single-beat: its module holds one node, so
its two loops are written down here, and what they cost is checked against two real nodes.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import redis
from celery import Celery

from benchmarks.peers.contenders import LEADER, LEASE, LEASED_BEAT, LOCK, REDBEAT, SINGLE_BEAT
from celery_leader import LeaderElection

_names = itertools.count()


def _app(url: str, settings: dict[str, Any]) -> Celery:
    app = Celery(f"candidate{next(_names)}", broker=url, set_as_current=False)
    app.conf.update(settings)
    return app


def _leader(url: str) -> None:
    app = _app(url, LEADER.settings(url))
    LeaderElection(app, "beat").start()
    _kept.append(app)


def _redbeat(url: str) -> None:
    from redbeat.schedulers import RedBeatScheduler, acquire_distributed_beat_lock

    scheduler = RedBeatScheduler(_app(url, REDBEAT.settings(url)))
    acquire_distributed_beat_lock(sender=SimpleNamespace(scheduler=scheduler))
    while True:
        time.sleep(scheduler.tick())


def _leased_beat(url: str) -> None:
    from celery_leased_beat.scheduler import LeasedScheduler

    scheduler = LeasedScheduler(_app(url, LEASED_BEAT.settings(url)))
    while True:
        time.sleep(scheduler.tick())


def _lock(url: str) -> None:
    lock = redis.Redis.from_url(url).lock("beat", timeout=LEASE, thread_local=False)
    lock.acquire()
    while True:
        time.sleep(LEASE / 5)
        lock.reacquire()


def _single_beat(url: str) -> None:
    client = redis.Redis.from_url(url)
    subscribed = client.pubsub()
    subscribed.subscribe("SB")
    _kept.append(subscribed)
    while not client.set("SINGLE_BEAT", "0:host:0", nx=True, ex=2 * LEASE):
        time.sleep(1)
    while True:
        client.get("SINGLE_BEAT")
        client.set("SINGLE_BEAT", "0:host:0", ex=LEASE)
        time.sleep(1)


_kept: list[Any] = []

CANDIDATES: dict[str, Callable[[str], None]] = {
    REDBEAT.distribution: _redbeat,
    SINGLE_BEAT.distribution: _single_beat,
    LEASED_BEAT.distribution: _leased_beat,
    LOCK.distribution: _lock,
    LEADER.distribution: _leader,
}


def main() -> None:
    name, count, url = sys.argv[1:]
    for _ in range(int(count)):
        threading.Thread(target=CANDIDATES[name], args=(url,), daemon=True).start()
        time.sleep(0.02)
    threading.Event().wait()


if __name__ == "__main__":
    main()
