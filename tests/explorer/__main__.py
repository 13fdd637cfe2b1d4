"""``make explore``: every course of an election within bounds, and how many there are."""

from __future__ import annotations

import argparse
import sys
import time

from tests.explorer.explore import Counterexample, explore
from tests.explorer.model import TIMING, Scope

LEASE = TIMING.lease_duration


def scopes(faults: int) -> dict[str, Scope]:
    """What is explored, each with that many faults."""
    return {
        "messages and pauses": Scope(faults),
        "restarts, resignations, transfers": Scope(faults, restarts=True, resignations=True),
        "data loss": Scope(faults, data_loss=True),
        "data loss and restarts, with a bootstrap delay": Scope(
            faults, data_loss=True, restarts=True, bootstrap_delay=LEASE
        ),
        "the server's clock set": Scope(faults, clock_steps=True),
    }


def main() -> int:
    """Explore, print the counts, and return 1 with the shortest course if one is broken."""
    options = _parse()
    print(f"{options.candidates} candidates, {options.faults} faults in any course, of any length")
    for name, scope in scopes(options.faults).items():
        started = time.monotonic()
        try:
            found = explore(scope, candidates=options.candidates)
        except Counterexample as exc:
            print(f"{name}: broken by\n{exc}")
            return 1
        seconds = time.monotonic() - started
        print(
            f"{name}: {found.states:,} states, {found.transitions:,} transitions,"
            f" led {found.longest_wait} s after the last fault at the latest ({seconds:.0f} s)",
            flush=True,
        )
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.explorer", description=__doc__)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--faults", type=int, default=2, help="in one course (2)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
