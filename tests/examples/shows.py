"""Running an example's show as ``make`` does, and what of it is left afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT

NewShow = Callable[..., "RunningShow"]


class RunningShow:
    """One show, ours from its start to ``close``."""

    def __init__(self, example: str, directory: Path, *arguments: str, **env: str) -> None:
        self._temporary = directory / "tmp"
        self._temporary.mkdir(exist_ok=True)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", f"examples.{example}.show", *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self._temporary), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def says(self, text: str) -> str:
        """Read on until it says ``text``; that line."""
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self.said += line
            if text in line:
                return line
        raise AssertionError(f"it ended without saying {text!r}; it said:\n{self.said}")

    def started(self) -> list[psutil.Process]:
        """Everything it has started."""
        return psutil.Process(self.pid).children(recursive=True)

    def ends(self) -> int:
        """Read on until it ends; its exit code."""
        assert self._popen.stdout is not None
        self.said += self._popen.stdout.read()
        return self._popen.wait(60)

    def signal(self, number: int) -> None:
        """Send ``number`` to it alone."""
        self._popen.send_signal(number)

    def left_behind(self) -> list[str]:
        """The files and directories that it made and did not remove."""
        return sorted(each.name for each in self._temporary.iterdir())

    def close(self) -> None:
        """End it, and with it what it started."""
        if self._popen.poll() is None:
            self._popen.terminate()
            self._popen.wait(60)
        assert self._popen.stdout is not None
        self._popen.stdout.close()


@pytest.fixture
def new_show(real: None, tmp_path: Path) -> Iterator[NewShow]:
    """Starts shows, which end with the test."""
    with ExitStack() as stack:

        def new(example: str, *arguments: str, **env: str) -> RunningShow:
            show = RunningShow(example, tmp_path, *arguments, **env)
            stack.callback(show.close)
            return show

        yield new


def runs(process: psutil.Process) -> bool:
    """Whether it still does anything."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
