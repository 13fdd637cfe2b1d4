"""What a growing fleet of candidates asks of Redis: commands, connections, CPU."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import redis

from benchmarks.peers.candidates import CANDIDATES
from benchmarks.peers.contenders import Contender
from benchmarks.peers.idle import commands
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

_CANDIDATES = "benchmarks.peers.candidates"
_SETTLES = 3.0  # seconds after the last connection


@dataclass(frozen=True, slots=True)
class Load:
    """Of so many candidates of one contender, a second: all numbers are per candidate."""

    contender: Contender
    candidates: int
    commands: float
    connections: float
    #: Seconds of Redis's CPU.
    cpu: float


def measure(
    contenders: tuple[Contender, ...], sizes: tuple[int, ...], seconds: float
) -> list[Load]:
    """Each size of fleet, of all contenders side by side."""
    contenders = tuple(each for each in contenders if each.distribution in CANDIDATES)
    loads = []
    for size in sizes:
        with contextlib.ExitStack() as stack:
            fleets = [(each, stack.enter_context(_fleet(each, size))) for each in contenders]
            pool = stack.enter_context(ThreadPoolExecutor(len(fleets)))
            time.sleep(_SETTLES)
            watches = [pool.submit(_of, *fleet, seconds, size) for fleet in fleets]
            loads += [watch.result() for watch in watches]
    return loads


@contextlib.contextmanager
def _fleet(contender: Contender, size: int) -> Iterator[RedisServer]:
    with RedisServer() as server, server.client() as client:
        process = subprocess.Popen(
            (sys.executable, "-m", _CANDIDATES, contender.distribution, str(size), server.url),
            stdin=subprocess.DEVNULL,
        )
        try:
            wait_until(
                lambda: client.info("clients")["connected_clients"] > size,
                timeout=120,
                what=f"{size} candidates of {contender.name}",
            )
            yield server
        finally:
            process.kill()
            process.wait()


def _of(contender: Contender, server: RedisServer, seconds: float, size: int) -> Load:
    with server.client() as client:
        connections = client.info("clients")["connected_clients"] - 1
        cpu, began = cpu_used(client), time.monotonic()
        time.sleep(seconds)
        cpu = (cpu_used(client) - cpu) / (time.monotonic() - began)
    # MONITOR costs Redis time, so it comes afterwards.
    over, began = threading.Event(), time.monotonic()
    threading.Timer(seconds, over.set).start()
    count = commands(server.port, over)
    lasted = time.monotonic() - began
    return Load(contender, size, count / lasted / size, connections / size, cpu / size)


def cpu_used(client: redis.Redis) -> float:
    """Seconds of CPU that the server has used so far."""
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])
