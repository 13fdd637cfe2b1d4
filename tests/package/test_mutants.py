"""The deliberate bugs of ``make mutants`` still apply to the source; they are run there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.mutants import __main__ as mutants
from tests.mutants.__main__ import Failure, Hunt
from tests.mutants.mutants import MUTANTS, Mutant
from tests.support import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_to_the_source_and_names_tests_that_are_there(mutant: Mutant) -> None:
    mutated = mutant.applied_to(mutant.path(ROOT).read_text(encoding="utf-8"))
    if mutant.file.endswith(".py"):
        compile(mutated, mutant.file, "exec")
    for test in mutant.tests:
        path, _, name = test.partition("[")[0].partition("::")
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_no_two_mutants_have_one_name() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 25


class Copy:
    """Stands for the copied tree: what fails in it, with a mutant and without."""

    def __init__(self, with_it: str | None, without: str | None = None) -> None:
        self._with_it = with_it
        self._without = without
        self.asked_without: list[Sequence[str]] = []

    def failing(self, tests: Sequence[str], mutant: Mutant | None = None) -> Failure | None:
        if mutant is None:
            self.asked_without.append(tests)
        failing = self._without if mutant is None else self._with_it
        return None if failing is None else Failure((failing,))


def test_a_mutant_is_caught_by_a_test_that_passes_without_it() -> None:
    copy = Copy("test_a")
    hunt = Hunt(copy)  # type: ignore[arg-type]
    assert hunt.catches(MUTANTS[0])
    assert hunt.catches(MUTANTS[1])
    assert copy.asked_without == [["test_a"]], "once is enough"


def test_a_test_that_fails_in_any_case_catches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert not Hunt(Copy("test_a", "test_a")).catches(MUTANTS[0])  # type: ignore[arg-type]
    assert "FAILS WITHOUT IT TOO" in capsys.readouterr().out


def test_a_mutant_that_no_test_sees_is_not_caught() -> None:
    assert not Hunt(Copy(None)).catches(MUTANTS[0])  # type: ignore[arg-type]


def test_a_run_that_applies_no_mutant_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "Copy", lambda where: Copy("test_a"))
    assert mutants.main(["--minutes", "-1"]) == 1
    assert "0 of" in capsys.readouterr().out
    assert mutants.main(["--only", MUTANTS[0].name]) == 0
