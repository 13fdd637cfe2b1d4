"""Tests that share a fixture of their module run in one process, which makes it once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.fixtures import RunPython

MODULE = """
import os
from pathlib import Path
import pytest

@pytest.fixture(scope="module", params=["one", "two"])
def shared(request):
    with Path(__file__).with_name("made").open("a") as made:
        made.write(f"{request.param} {os.getpid()}\\n")

@pytest.mark.parametrize("number", range(6))
def test_shared(shared, number):
    pass

def test_alone():
    pass
"""


def test_a_fixture_of_a_module_is_made_once_and_for_two_parameters_in_two_processes(
    python: RunPython, tmp_path: Path
) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(MODULE)
    done = python(
        *("-m", "pytest", "-n", "2", "-p", "xdist", "-p", "tests.support.side_by_side"),
        *("-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)),
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
    )
    assert "13 passed" in done.stdout, done.stdout + done.stderr
    made = dict(line.split() for line in (tmp_path / "made").read_text().splitlines())
    assert (tmp_path / "made").read_text().count("\n") == len(made) == 2
    assert made["one"] != made["two"]
