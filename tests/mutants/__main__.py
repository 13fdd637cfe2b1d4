"""``make mutants``: applies each deliberate bug to a copy of the tree, and names the test that sees it."""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("tests/unit", "tests/simulation", "tests/store")
_PATIENCE = 400.0  # seconds for one run of tests; what takes longer hangs
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", ".nox", "__pycache__", ".*_cache", "*.egg-info"
)
#: How pytest ends when it was not the tests that failed.
_NOTHING_RUN = (2, 3, 4, 5)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class Copy:
    """A copy of the tree, whose source may be changed and whose tests run on that."""

    def __init__(self, where: Path) -> None:
        self._root = where / "tree"
        shutil.copytree(ROOT, self._root, ignore=_LEFT_OUT)

    def failing(self, tests: Sequence[str], mutant: Mutant | None = None) -> str | None:
        """The first of ``tests`` that fails with ``mutant`` applied; ``None`` if none does."""
        if mutant is None:
            return self._failing(tests)
        path = mutant.path(self._root)
        text = path.read_text(encoding="utf-8")
        path.write_text(mutant.applied_to(text), encoding="utf-8")
        try:
            return self._failing(tests)
        finally:
            path.write_text(text, encoding="utf-8")

    def _failing(self, tests: Sequence[str]) -> str | None:
        # No bytecode: a mutant of the same size, made in the same second, would not be seen.
        environ = {**os.environ, "PYTHONPATH": str(self._root), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", *tests]
        command += ["-p", "no:cacheprovider"]
        with subprocess.Popen(
            command,
            cwd=self._root,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                output, _ = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                return f"{tests[0]} (did not end)"
        if process.returncode == 0:
            return None
        failed = _FAILED.search(output)
        if failed is None and process.returncode not in _NOTHING_RUN:
            return f"{tests[0]} (pytest ended with {process.returncode})"
        if failed is None:
            sys.exit(f"pytest {' '.join(tests)} says neither who passed nor who failed:\n{output}")
        return failed.group(1)


def main() -> int:
    """Apply the mutants; 1 if one was not caught."""
    options = _parse()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if not chosen:
        sys.exit(f"no mutant has {options.only!r} in its name")
    for mutant in MUTANTS:
        mutant.applied_to(mutant.path(ROOT).read_text(encoding="utf-8"))
    end = float("inf")
    if options.minutes is not None:
        seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
        print(f"mutants: --minutes {options.minutes:g} --seed {seed}", flush=True)
        random.Random(seed).shuffle(chosen)
        end = time.monotonic() + 60 * options.minutes
    survivors: list[str] = []
    done = 0
    with tempfile.TemporaryDirectory(prefix="celery-leader-mutants-") as where:
        copy = Copy(Path(where))
        _check_that_tests_pass(copy, chosen, options.minutes is None)
        for mutant in chosen:
            if time.monotonic() > end:
                break
            done += 1
            if not _catches(copy, mutant):
                survivors.append(mutant.name)
    print(f"\n{done} of {len(MUTANTS)} mutants, {done - len(survivors)} caught")
    for name in survivors:
        print(f"not caught: {name}")
    return 1 if survivors else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="those with this in their name")
    parser.add_argument("--minutes", type=float, help="as many as fit, in the order of the seed")
    parser.add_argument("--seed", type=int)
    return parser.parse_args()


def _check_that_tests_pass(copy: Copy, chosen: Sequence[Mutant], thorough: bool) -> None:
    """Without a mutant no test may fail, or each of them would be caught by that."""
    tests = ["tests/unit/test_election.py"]
    if thorough:
        tests = sorted({test for mutant in chosen for test in mutant.tests})
    failing = copy.failing(tests)
    if failing is not None:
        sys.exit(f"{failing} fails without any mutant")


def _catches(copy: Copy, mutant: Mutant) -> bool:
    started = time.monotonic()
    test = copy.failing(mutant.tests, mutant) or copy.failing(QUICK, mutant)
    seconds = time.monotonic() - started
    print(f"{mutant.file}: {mutant.name} ({seconds:.0f} s)", flush=True)
    print(f"    {'NOT CAUGHT' if test is None else test}", flush=True)
    return test is not None


if __name__ == "__main__":
    sys.exit(main())
