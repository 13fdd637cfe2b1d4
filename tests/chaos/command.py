"""What every command of chaos does around its run: a seed, logs, a verdict, an exit code."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tests.chaos.faults import Fault
from tests.chaos.supervised import Supervised


class Judged(Protocol):
    """A report, as far as its verdict goes."""

    violations: list[str]


R = TypeVar("R", bound=Judged)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of chaos is made of, beside its options.

    Attributes:
        faults: in order, without end.
        imports: modules that every process imports with its app.
        watch: is given the places of the processes when they have been started.
    """

    faults: Iterator[Fault]
    imports: tuple[str, ...] = ()
    watch: Callable[[Sequence[Supervised]], None] = lambda places: None


def judged(
    options: argparse.Namespace,
    *,
    title: str,
    what: str,
    whose: str,
    run: Callable[[argparse.Namespace, int, Path], tuple[R, list[str]]],
    table: Callable[[R], str],
    harm_expected: bool,
    harm: Callable[[R], int],
) -> int:
    """Make the faults and print what came of them; the exit code.

    Args:
        options: of the command line.
        title: what this chaos calls itself.
        what: what is put under faults, in words.
        whose: whose logs are kept.
        run: makes the faults; the report, and notes beside it.
        table: the report as text.
        harm_expected: the judge is to see what ``harm`` counts.
        harm: how often what is guarded against has happened.
    """
    seed = options.seed if options.seed is not None else random.SystemRandom().randint(1, 10**6)
    print(f"{title}: seed {seed}, {options.minutes:g} min, {what}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logs = Path(tempfile.mkdtemp(prefix="celery-leader-chaos-"))
    try:
        report, notes = run(options, seed, logs)
    except BaseException:
        print(f"{title}: the logs of the {whose} are in {logs}", flush=True)
        raise
    print(table(report))
    for note in notes:
        print(note)
    if report.violations:
        print(f"\nVIOLATIONS (seed {seed}; the logs of the {whose} are in {logs}):")
        for violation in report.violations:
            print(f"- {violation}")
        return 0 if harm_expected and harm(report) else 1
    print(f"\nno violation (seed {seed})")
    if not options.keep_logs:
        shutil.rmtree(logs, ignore_errors=True)
    return int(harm_expected)
