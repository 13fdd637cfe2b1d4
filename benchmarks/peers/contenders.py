"""Who is measured, and how each is set up: as its own documentation says, with one lease.

Where a contender has other durations beside its lease, they have the proportions of its
own defaults. Whole seconds, because single-beat and celery-leased-beat take no others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEASE = 5

_BEAT = (sys.executable, "-m", "celery", "-A", "benchmarks.peers.app", "beat", "-l", "info")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run beat.

    Attributes:
        name: in tables and plots.
        distribution: what was installed, or "" for Celery's own.
        command: given a schedule file of the node's own, what to run.
        settings: given the URL of Redis, what Celery is set to beside the broker.
        variables: given the URL of Redis, environment variables.
        nodes: how many run at once.
        install: whether celery_leader is installed in the app.
        documented: where its documentation says so.
    """

    name: str
    distribution: str
    command: Callable[[str], tuple[str, ...]]
    documented: str
    settings: Callable[[str], dict[str, Any]] = field(default=lambda url: {})
    variables: Callable[[str], dict[str, str]] = field(default=lambda url: {})
    nodes: int = 2
    install: bool = False


STOCK = Contender(
    name="stock beat",
    distribution="celery",
    command=lambda file: (*_BEAT, "-s", file),
    documented="Celery's guide: only a single scheduler may run at a time",
    nodes=1,
)
REDBEAT = Contender(
    name="celery-redbeat",
    distribution="celery-redbeat",
    command=lambda file: (*_BEAT, "-S", "redbeat.RedBeatScheduler"),
    settings=lambda url: {
        "redbeat_redis_url": url,
        "redbeat_lock_timeout": LEASE,
        "beat_max_loop_interval": LEASE / 5,
    },
    documented="its page on configuration: a lock of five loop intervals, as by default",
)
SINGLE_BEAT = Contender(
    name="single-beat",
    distribution="single-beat",
    command=lambda file: (str(Path(sys.executable).parent / "single-beat"), *_BEAT, "-s", file),
    variables=lambda url: {
        "SINGLE_BEAT_REDIS_SERVER": url,
        "SINGLE_BEAT_IDENTIFIER": "celery-beat",
        "SINGLE_BEAT_LOCK_TIME": str(LEASE),
        "SINGLE_BEAT_INITIAL_LOCK_TIME": str(2 * LEASE),
        "SINGLE_BEAT_HEARTBEAT_INTERVAL": "1",
    },
    documented="its README; the three times are its defaults",
)
LEASED_BEAT = Contender(
    name="celery-leased-beat",
    distribution="celery-leased-beat",
    command=lambda file: (
        *_BEAT,
        "-S",
        "celery_leased_beat.scheduler.LeasedPersistentScheduler",
        "-s",
        file,
    ),
    settings=lambda url: {
        "CELERY_LEASE_URL": url,
        "CELERY_LEASE_LOCK_TTL": LEASE,
        "CELERY_LEASE_INTERVAL": 1,
    },
    documented="its README; the interval is a quarter of the lock by default, in whole seconds",
)
LOCK = Contender(
    name="redis-py's Lock",
    distribution="redis",
    command=lambda file: (sys.executable, "-m", "benchmarks.peers.locked_beat", file),
    documented="stock beat in 20 lines of our own, benchmarks/peers/locked_beat.py",
)
LEADER = Contender(
    name="celery_leader",
    distribution="celery-leader",
    command=lambda file: (*_BEAT, "-S", "leader"),
    settings=lambda url: {"leader_lease_duration": LEASE},
    install=True,
    documented="the README here; the rest follows from the lease",
)

ALL = (STOCK, REDBEAT, SINGLE_BEAT, LEASED_BEAT, LOCK, LEADER)
