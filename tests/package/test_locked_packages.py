"""What the images are built from agrees with what the package asks for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

LOCKS = sorted((ROOT / "requirements").glob("image*.txt"))
_PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^ ;]+)", re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_pins_every_dependency_to_a_version_that_is_allowed(lock: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins: dict[str, set[Version]] = {}
    for name, version in _PIN.findall(lock.read_text()):
        pins.setdefault(name.lower(), set()).add(Version(version))
    for wanted in map(Requirement, project["dependencies"]):
        assert wanted.name in pins, f"run make lock: {lock.name} has no {wanted.name}"
        for version in pins[wanted.name]:
            assert version in wanted.specifier, f"run make lock: {lock.name} has {version}"
