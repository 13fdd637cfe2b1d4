"""``make mutants``: applies each deliberate bug to a copy of the tree, and names the test that sees it.

A mutant is caught by a test that fails with it and passes without it. A run in which none was
applied has failed.
"""

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
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutants import MUTANTS, Mutant
from tests.support import ROOT

_ROOMS = ("core", "runtime", "tasks", "worker", "beat", "ops", "package")
#: Asked one after the other where the tests that a mutant names do not see it.
QUICK = (
    ("-m", "not real", *(f"tests/{room}" for room in _ROOMS)),
    ("tests/simulation", "tests/store"),
)
_PATIENCE = 400.0  # seconds for one run of tests; what takes longer hangs
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", ".nox", "__pycache__", ".*_cache", "*.egg-info"
)
#: How pytest ends when it was not the tests that failed.
_NOTHING_RUN = (2, 3, 4, 5)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Failure:
    """What failed: tests as pytest names them, and how they did if not as tests do."""

    tests: tuple[str, ...]
    how: str = ""

    def __str__(self) -> str:
        return f"{self.tests[0]} ({self.how})" if self.how else self.tests[0]


class Copy:
    """A copy of the tree, whose source may be changed and whose tests run on that."""

    def __init__(self, where: Path) -> None:
        self._root = where / "tree"
        shutil.copytree(ROOT, self._root, ignore=_LEFT_OUT)

    def failing(self, tests: Sequence[str], mutant: Mutant | None = None) -> Failure | None:
        """What of ``tests`` fails first with ``mutant`` applied; ``None`` if nothing does."""
        if mutant is None:
            return self._failing(tests)
        path = mutant.path(self._root)
        text = path.read_text(encoding="utf-8")
        path.write_text(mutant.applied_to(text), encoding="utf-8")
        try:
            return self._failing(tests)
        finally:
            path.write_text(text, encoding="utf-8")

    def _failing(self, tests: Sequence[str]) -> Failure | None:
        # No bytecode: a mutant of the same size, made in the same second, would not be seen.
        environ = {**os.environ, "PYTHONPATH": str(self._root), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", *tests]
        # That each mutant applies to the source is not so where one is applied.
        command += ["-p", "no:cacheprovider", "--ignore=tests/package/test_mutants.py"]
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
                return Failure(tuple(tests), "did not end")
        if process.returncode == 0:
            return None
        failed = _FAILED.search(output)
        if failed is None and process.returncode not in _NOTHING_RUN:
            return Failure(tuple(tests), f"pytest ended with {process.returncode}")
        if failed is None:
            sys.exit(f"pytest {' '.join(tests)} says neither who passed nor who failed:\n{output}")
        return Failure((failed.group(1),))


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply the mutants; 1 if one was not caught, or none applied."""
    options = _parse(arguments)
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
        hunt = Hunt(Copy(Path(where)))
        for mutant in chosen:
            if time.monotonic() > end:
                break
            done += 1
            if not hunt.catches(mutant):
                survivors.append(mutant.name)
    print(f"\n{done} of {len(MUTANTS)} mutants, {done - len(survivors)} caught")
    for name in survivors:
        print(f"not caught: {name}")
    if not done:
        print("none was applied, so nothing was tried: give --minutes more")
    return 1 if survivors or not done else 0


class Hunt:
    """Looks for the tests that catch mutants.

    Args:
        copy: of the tree.
    """

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self._pass_without: set[str] = set()

    def catches(self, mutant: Mutant) -> bool:
        """Whether a test fails with ``mutant`` and passes without it; says which."""
        started = time.monotonic()
        asked = (self._copy.failing(tests, mutant) for tests in (mutant.tests, *QUICK))
        failure = next(filter(None, asked), None)
        by_it = failure is not None and self._passes_without(failure.tests)
        seconds = time.monotonic() - started
        print(f"{mutant.file}: {mutant.name} ({seconds:.0f} s)", flush=True)
        if failure is None:
            print("    NOT CAUGHT", flush=True)
        else:
            also = "" if by_it else ", WHICH FAILS WITHOUT IT TOO"
            print(f"    {failure}{also}", flush=True)
        return by_it

    def _passes_without(self, tests: Sequence[str]) -> bool:
        unknown = [test for test in tests if test not in self._pass_without]
        if unknown and self._copy.failing(unknown) is not None:
            return False
        self._pass_without.update(unknown)
        return True


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="those with this in their name")
    parser.add_argument("--minutes", type=float, help="as many as fit, in the order of the seed")
    parser.add_argument("--seed", type=int)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
