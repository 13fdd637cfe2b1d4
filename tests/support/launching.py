"""Starts processes in groups of their own, and ends whole groups."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import ROOT


def without_celery_variables(**more: str) -> dict[str, str]:
    """This environment without what configures Celery, and with ``more``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    return {**kept, **more}


def launch(
    command: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a process group of its own; what it says is added to ``log``."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_group(process: subprocess.Popen[bytes], timeout: float | None = None) -> None:
    """End ``process`` and everything in its group at once, and wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout)
