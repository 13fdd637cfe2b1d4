"""The tests on each Python that is here: ``nox``, ``nox -s tests-3.12 -- tests/core``."""

from __future__ import annotations

import nox

ROOMS = ["core", "store", "runtime", "tasks", "worker", "beat", "ops", "package"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]

nox.options.default_venv_backend = "uv|virtualenv"
# What the machine has of them is enough.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests that start no process, and those of the store; or what is named after ``--``."""
    session.install("--editable", ".[test,demo]")
    quick = ["-m", "not real or store", *(f"tests/{room}" for room in ROOMS)]
    session.run("python", "-m", "pytest", *(session.posargs or quick))
