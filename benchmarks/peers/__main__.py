"""Everything beside its peers: ``python -m benchmarks.peers``; about fifteen minutes.

Writes ``benchmarks.md`` and ``benchmarks.svg`` into ``docs/`` or where ``--into`` says.
``--quick`` measures little, once. Nothing is asserted about time.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
import timeit
from importlib.metadata import version
from pathlib import Path

from benchmarks import dispatch
from benchmarks.peers import faults, growth, idle, scale
from benchmarks.peers.contenders import ALL, LEADER, LEASED_BEAT, REDBEAT, STOCK
from benchmarks.peers.figures import Figures, Questions, Rates
from benchmarks.peers.page import page
from benchmarks.peers.plot import draw
from benchmarks.peers.scale import Sizes
from benchmarks.run import new_fleet
from tests.support.redis_server import RedisServer

_MAKERS = {
    STOCK.name: dispatch.stock,
    REDBEAT.name: dispatch.redbeat,
    LEASED_BEAT.name: dispatch.leased_beat,
    LEADER.name: dispatch.leader,
}
_QUESTIONS = 5_000  # asked of Redis


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--into", type=Path, default=Path("docs"))
    options = parser.parse_args()
    figures = _quick() if options.quick else _full()
    options.into.mkdir(parents=True, exist_ok=True)
    text = page(figures)
    (options.into / "benchmarks.md").write_text(text)
    draw(figures, options.into / "benchmarks.svg")
    print(text)
    return 0


def _full() -> Figures:
    return _measured(
        failovers=6,
        times=2,
        sizes=(100, 1_000, 10_000),
        rounds=2,
        seconds=20.0,
        fleets=(2, 20, 200),
        scales=Sizes(),
    )


def _quick() -> Figures:
    return _measured(
        failovers=1,
        times=1,
        sizes=(100, 300),
        rounds=1,
        seconds=4.0,
        fleets=(2, 10),
        scales=Sizes(candidates=200, elections=50, entries=500),
    )


def _measured(
    *,
    failovers: int,
    times: int,
    sizes: tuple[int, ...],
    rounds: int,
    seconds: float,
    fleets: tuple[int, ...],
    scales: Sizes,
) -> Figures:
    with tempfile.TemporaryDirectory(prefix="celery-leader-bench-") as directory:
        results = faults.measure(ALL, failovers, times, Path(directory))
        _say("idle")
        idles = idle.measure(ALL, seconds, Path(directory))
    _say("a growing fleet")
    loads = growth.measure(ALL, fleets, seconds / 2)
    _say("dispatch rates")
    rates = _rates(sizes, rounds)
    _say("questions")
    questions = _questions()
    _say("scale")
    return Figures(
        when=time.strftime("%Y-%m-%d"),
        versions=_versions(),
        repeats=(
            f"Each failover {failovers} times, each other fault {times} times, dispatch rates in"
            f" {rounds} rounds, idle for {seconds:g} s, each fleet for {seconds:g} s"
        ),
        results=results,
        rates=rates,
        idle=idles,
        loads=loads,
        questions=questions,
        scale=scale.measure(scales),
    )


def _rates(sizes: tuple[int, ...], rounds: int) -> list[Rates]:
    best: dict[str, dict[int, float]] = {name: dict.fromkeys(sizes, 0.0) for name in _MAKERS}
    for size in sizes:
        for _ in range(rounds):  # in turns, so that the machine's moods hit all
            for name, make in _MAKERS.items():
                best[name][size] = max(best[name][size], dispatch.rate(make, size))
    return [Rates(name, by_size) for name, by_size in best.items()]


def _questions() -> Questions:
    with new_fleet() as fleet:
        fleet.worker("w1", "-I", "benchmarks.tasks").says(" ready.")
        fleet.leader()
        asked = fleet.stranger.send_task("bench.is_leader").get(timeout=60)
    assert asked["leads"]
    with RedisServer() as server, server.client() as client:
        lock = client.lock("beat", timeout=60)
        assert lock.acquire()
        seconds = min(timeit.repeat(lock.owned, number=_QUESTIONS // 5, repeat=5))
    return Questions(asked["ns"], seconds / (_QUESTIONS // 5) * 1e9)


def _versions() -> str:
    with RedisServer() as server, server.client() as client:
        redis_version = client.info("server")["redis_version"]
    names = dict.fromkeys(("celery", "kombu", "redis", *(each.distribution for each in ALL)))
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{packages}; Redis {redis_version}, Python {platform.python_version()}"


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
