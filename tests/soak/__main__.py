"""Soak: beats and workers under all faults of chaos, and what each process holds over time.

``python -m tests.soak --minutes 30`` runs both chaoses at once, prints their tables and
one of memory, file descriptors, threads and connections, and writes ``soak-report.svg``
and ``.png``. Its exit code is 1 if a judge of chaos has found something, or if something
grows in the processes of one kind. Two processes of each fleet are spared what would end
them, so that they live through all the rest; what is left ends the third.

With ``--plain`` the workers are without celery_leader, to see what Celery's own grow by.
With ``--leak memory`` every process leaks that on purpose, and the exit code is 0 only if
it was found.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos import __main__ as of_beats
from tests.chaos import faults as beat_faults
from tests.chaos import task_faults
from tests.chaos import tasks as of_tasks
from tests.chaos.command import Plan
from tests.chaos.faults import schedule
from tests.chaos.supervised import Supervised
from tests.soak import leaky, plot
from tests.soak.sampler import METRICS, POOL, Sampler
from tests.soak.trend import Trend, trend

#: What may grow by so much a minute without being called a leak.
TOLERATED = {"rss": 1.0, "pss": 1.0, "descriptors": 0.5, "threads": 0.5, "connections": 0.5}
#: Plain Celery's pool processes grow under these faults too: ``--plain`` shows by how much.
#: Their proportional memory also grows with each other process that ends.
_TOLERATED_IN_POOLS = {**TOLERATED, "rss": 3.0, "pss": 9.0}
_SPARED = 2  # of each fleet: they live from the first fault to the last
_REPORTS = [Path("soak-report.svg"), Path("soak-report.png")]
_LEAKS_IN = {"memory": ("rss", "pss")}


def main() -> int:
    options = _options()
    if not Path("/proc/self/smaps_rollup").exists():
        print("soak: it reads /proc, so it needs Linux", file=sys.stderr)
        return 1
    seed = options.seed if options.seed is not None else random.SystemRandom().randint(1, 10**6)
    print(f"soak: seed {seed}, {options.minutes:g} min, leak {options.leak or 'none'}", flush=True)
    logs = Path(tempfile.mkdtemp(prefix="celery-leader-soak-"))
    if options.leak:
        os.environ[leaky.VARIABLE] = options.leak
    sampler = Sampler()
    with sampler:
        violations = _both(options, seed, sampler, logs)
    if sampler.error is not None:
        raise sampler.error
    grown, told = _judge(sampler)
    title = f"{options.minutes:g} minutes under faults, seed {seed}, {time.strftime('%Y-%m-%d')}"
    plot.draw(sampler.lives, sampler.begun, title, _REPORTS)
    print(f"\nplot: {', '.join(map(str, _REPORTS))}")
    for each in violations:
        print(f"- {each}")
    if options.leak:
        wanted = _LEAKS_IN.get(options.leak, (options.leak,))
        found = [(role, metric) for role, metric in grown if metric in wanted]
        print(f"leak of {options.leak}: {'found' if found else 'NOT FOUND'}")
        return int(not found)
    if violations or grown:
        print(f"the logs are in {logs}")
        return 1
    if not told:
        print("too short to tell whether something grows: give it more --minutes")
        return 1
    print("nothing grows")
    shutil.rmtree(logs, ignore_errors=True)
    return 0


def _both(options: argparse.Namespace, seed: int, sampler: Sampler, logs: Path) -> list[str]:
    """Run both chaoses side by side; what they have found."""
    common = ["--minutes", str(options.minutes), "--lease", str(options.lease)]
    imports = ("tests.soak.leaky",) if options.leak else ()
    violations: list[str] = []

    def plan(role: str, kinds: Sequence[str]) -> Plan:
        def watch(places: Sequence[Supervised]) -> None:
            for place in places[:_SPARED]:
                place.spared = True
            sampler.watch(role, places)

        return Plan(schedule(seed, kinds), imports, watch)

    def of(name: str, run: Callable[[], Any], table: Callable[[Any], str]) -> None:
        directory = logs / name
        directory.mkdir()
        try:
            report, notes = run()
        except BaseException as exc:
            violations.append(f"{name}: {exc!r}")
            raise
        print(f"\n{name}\n{table(report)}", *notes, sep="\n", flush=True)
        violations.extend(f"{name}: {each}" for each in report.violations)

    beats = plan("beat", beat_faults.KINDS)
    workers = plan("worker", task_faults.KINDS)
    beat_options = of_beats.parsed(common)
    task_options = of_tasks.parsed([*common, *(["--plain"] if options.plain else [])])
    runs = {
        "beats": (lambda: of_beats.run(beat_options, beats, logs / "beats"), of_beats.table),
        "workers": (
            lambda: of_tasks.run(task_options, seed, workers, logs / "workers"),
            of_tasks.table,
        ),
    }
    threads = [
        threading.Thread(target=of, args=(name, run, table)) for name, (run, table) in runs.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return violations


def _judge(sampler: Sampler) -> tuple[list[tuple[str, str]], int]:
    """Print what each kind of process holds and how it grows; where it does, and of how many."""
    grown, told = [], 0
    print("\n| process | what | lives | minutes | lowest | highest | a minute | at least | |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---|")
    for role in sorted({life.role for life in sampler.lives}):
        for metric in METRICS:
            series = [
                [(sample.age, getattr(sample, metric)) for sample in samples]
                for life, samples in sampler.lives.items()
                if life.role == role
            ]
            found = trend(series)
            if found is None:
                print(f"| {role} | {metric} | 0 | | | | | | too short to tell |")
                continue
            told += 1
            tolerated = _TOLERATED_IN_POOLS if role == POOL else TOLERATED
            leaks = found.exceeds(tolerated[metric])
            if leaks:
                grown.append((role, metric))
            print(_line(role, metric, found, "GROWS" if leaks else "flat"))
    return grown, told


def _line(role: str, metric: str, found: Trend, verdict: str) -> str:
    return (
        f"| {role} | {metric} | {found.lives} | {found.minutes:.1f} | {found.lowest:.1f}"
        f" | {found.highest:.1f} | {found.per_minute:+.2f} | {found.at_least:+.2f} | {verdict} |"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default 30)")
    parser.add_argument("--seed", type=int, help="of the schedules of faults; by default drawn")
    parser.add_argument("--lease", type=float, default=3.0, help="seconds")
    parser.add_argument("--plain", action="store_true", help="workers without celery_leader")
    parser.add_argument("--leak", choices=sorted(leaky.LEAKS), help="leak this on purpose")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
