"""Runs ``celery leader …`` within this process, a second quicker than in a new process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from celery import Celery
from celery.bin.base import CLIContext

from celery_leader.ops.cli import leader


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str


def run(app: Celery, *arguments: str) -> Ran:
    """Run ``celery -A app leader`` with ``arguments``."""
    context = CLIContext(app=app, no_color=False, workdir=None)
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            leader.main(list(arguments), prog_name="celery leader", obj=context)
        except SystemExit as exc:
            code = exc.code or 0
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())
