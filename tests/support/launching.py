"""Starts processes in groups of their own, and ends whole groups."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from tests.support import ROOT
from tests.support.waiting import wait_until

#: Set, it has every process of a fleet start as a Python of its own.
FRESH_VARIABLE = "CELERY_LEADER_TEST_FRESH"
#: What is read when a process has started; in all other variables a fork is as the fork server is.
_READ_LATER = ("C_FORCE_ROOT", "FLEET", "PROJECT", "PYTEST_CURRENT_TEST")
#: Words of a command line whose process must do other things before it imports Celery.
_BEFORE_CELERY = ("gevent", "eventlet", "flower")


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
    errors: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a process group of its own; what it says is added to ``log``.

    Its errors, too, unless they have a file of their own.
    """
    with log.open("ab") as out, (errors or log).open("ab") as err:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def kill_group(process: subprocess.Popen[bytes], timeout: float | None = None) -> None:
    """End ``process`` and everything in its group at once, and wait for it."""
    _kill_group(process.pid)
    process.wait(timeout)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


class Running(Protocol):
    """A process in a group of its own, whose id stays its own until ``kill_and_reap``."""

    pid: int

    def exit_status(self) -> int | None:
        """Its exit status, or the signal that ended it; ``None`` while it runs or is stopped."""

    def kill_and_reap(self) -> None:
        """End its group at once, and let its id go; harmless the second time."""


class _Fresh:
    """A Python of its own."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        errors: Path | None,
    ):
        command = [sys.executable, "-m", module, *arguments]
        self._popen = launch(command, log, env=env, errors=errors)
        self.pid = self._popen.pid

    def exit_status(self) -> int | None:
        looked = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if looked is None else looked.si_status

    def kill_and_reap(self) -> None:
        if self._popen.returncode is None:
            kill_group(self._popen)


class _ForkServer:
    """``tests.support.fork_server``, which ends with this process."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            cwd=ROOT,
            env=_ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        atexit.register(self._process.communicate)  # at the end of its input it ends

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


_fork_server = cache(_ForkServer)


class _Forked:
    """A fork of the fork server."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        errors: Path | None,
    ):
        log.touch()
        self._reaped = False
        self._server = _fork_server()
        self.pid: int = self._server.ask(
            module=module,
            arguments=arguments,
            log=str(log),
            errors=str(errors or log),
            environment=dict(env),
        )

    def exit_status(self) -> int | None:
        status: int | None = self._server.ask(look=self.pid)
        return status

    def kill_and_reap(self) -> None:
        if not self._reaped:
            self._reaped = True
            _kill_group(self.pid)
            self._server.ask(reap=self.pid)


#: As it was before any test changed it.
_ENVIRONMENT = without_celery_variables(PYTHONUNBUFFERED="1")


def launch_module(
    module: str,
    arguments: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    errors: Path | None = None,
) -> Running:
    """Start ``python -m module arguments`` in a group of its own; what it says is added to ``log``.

    Its errors, too, unless they have a file of their own. It is forked from a process that has
    imported Celery, unless it depends on how a Python starts or on what happens before Celery is
    imported.
    """
    fresh = os.environ.get(FRESH_VARIABLE) or not sys.platform.startswith("linux")
    if fresh or set(_BEFORE_CELERY) & set(arguments) or _common(env) != _common(_ENVIRONMENT):
        return _Fresh(module, arguments, log, env, errors)
    return _Forked(module, arguments, log, env, errors)


def run_module(
    module: str, arguments: Sequence[str], env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module arguments`` to its end, started as ``launch_module`` does."""
    with tempfile.TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        process = launch_module(module, arguments, out, env, err)
        try:
            wait_until(
                lambda: process.exit_status() is not None, timeout, f"the end of {arguments}"
            )
            status = process.exit_status()
        finally:
            process.kill_and_reap()
        assert status is not None
        return subprocess.CompletedProcess(
            [module, *arguments], status, out.read_text(), err.read_text()
        )


def _common(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in _READ_LATER}
