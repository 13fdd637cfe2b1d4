"""``make simulate``: seeds by the thousand, and what they broke, as small as it gets."""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.schedule import LEASE, Schedule, of_seed, weather_of
from tests.simulation.shrinking import shrink
from tests.simulation.simulation import Simulation, Violation

_AT_ONCE = 50
_SHOWN = 3


@dataclass
class Account:
    """What some seeds came to."""

    schedules: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    totals: collections.Counter[str] = field(default_factory=collections.Counter)
    longest_wait: float = 0.0
    broken: list[int] = field(default_factory=list)

    def add(self, other: Account) -> None:
        """These seeds as well."""
        self.schedules += other.schedules
        self.faults += other.faults
        self.totals += other.totals
        self.longest_wait = max(self.longest_wait, other.longest_wait)
        self.broken += other.broken


def simulate(seeds: range) -> Account:
    """Run the schedules of ``seeds``."""
    account = Account()
    for seed in seeds:
        schedule = of_seed(seed)
        simulation = Simulation(schedule)
        try:
            simulation.run()
        except Violation:
            account.broken.append(seed)
        account.schedules[weather_of(seed)] += 1
        account.faults.update(type(fault).__name__ for fault in schedule.faults)
        account.totals["elections won"] += simulation.elections_won
        account.totals["writes accepted"] += simulation.writes_accepted
        account.totals["writes refused"] += simulation.writes_refused
        account.totals["simulated seconds"] += int(simulation.now)
        if simulation.first_elected_after_storm is not None:
            wait = simulation.first_elected_after_storm - schedule.storm
            account.longest_wait = max(account.longest_wait, wait / schedule.longest_lease)
    return account


def main() -> int:
    """Simulate or replay, say what came of it, and return 1 if a promise was broken."""
    options = _parse()
    if options.replay:
        return _replay(_schedule_in(options.replay))
    # As one number a seed stands for its schedule, so the first is all there is to print.
    first = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    print(f"simulate: --schedules {options.schedules} --seed {first}", flush=True)
    started = time.monotonic()
    account = Account()
    with multiprocessing.Pool(options.processes) as pool:
        for part in pool.imap_unordered(simulate, _parts(first, options.schedules)):
            account.add(part)
            if len(account.broken) >= _SHOWN:
                break
    _tell(account, time.monotonic() - started)
    for seed in sorted(account.broken)[:_SHOWN]:
        _show(seed)
    return 1 if account.broken else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000, help="how many (100000)")
    parser.add_argument("--seed", type=int, help="the first one's; the rest count on from there")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--replay", metavar="FILE", help="run the schedule in FILE ('-': stdin)")
    return parser.parse_args()


def _parts(first: int, count: int) -> Iterator[range]:
    for start in range(first, first + count, _AT_ONCE):
        yield range(start, min(start + _AT_ONCE, first + count))


def _tell(account: Account, seconds: float) -> None:
    done = sum(account.schedules.values())
    print(f"{done:,} schedules in {seconds:.0f} s, {len(account.broken)} of them broken")
    for name, counts in (("weather", account.schedules), ("faults", account.faults)):
        print(f"{name}: " + ", ".join(f"{what} {count:,}" for what, count in counts.items()))
    print(", ".join(f"{what} {count:,}" for what, count in account.totals.items()))
    print(f"longest wait for a leader after the last fault: {account.longest_wait:.2f} leases")


def _show(seed: int) -> None:
    print(f"\nseed {seed} ({weather_of(seed)}), made smaller ...", flush=True)
    schedule = shrink(of_seed(seed))
    _replay(schedule)
    print("to run this again: make simulate SIMULATE='--replay FILE', with this in FILE:")
    print(schedule.to_text())


def _replay(schedule: Schedule) -> int:
    simulation = Simulation(schedule)
    print(f"{len(schedule.nodes)} candidates, lease {LEASE:g} s, {len(schedule.faults)} faults:")
    for node in schedule.nodes:
        print(f"    {node}")
    for fault in schedule.faults:
        print(f"    {fault}")
    try:
        simulation.run()
    except Violation as violation:
        print("\n".join(simulation.trace.splitlines()[-25:]))
        print(violation)
        return 1
    print("nothing is broken")
    return 0


def _schedule_in(path: str) -> Schedule:
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    try:
        return Schedule.from_text(text)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        sys.exit(f"{path} holds no schedule that --replay could run: {exc}")


if __name__ == "__main__":
    sys.exit(main())
