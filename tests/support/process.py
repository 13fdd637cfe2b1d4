"""One real ``celery worker`` or ``celery beat`` process, with real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import fleet_app
from tests.support.launching import launch_module, without_celery_variables
from tests.support.waiting import wait_until


class Process:
    """One worker or beat, which runs from its start to ``close``."""

    #: The module its app is in.
    app = "tests.support.fleet_app"

    def __init__(self, name: str, node: str, command: Sequence[str], config: Any, log: Path):
        self.name = name
        self._node = node
        self.log_file = log
        configured = {fleet_app.VARIABLE: json.dumps(config)}
        self._running = launch_module(
            "tests.support.lean_celery",
            ["-A", self.app, *command],
            log,
            without_celery_variables(PYTHONUNBUFFERED="1", **configured),
        )

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self._running.pid

    @property
    def node(self) -> str:
        """The node name it campaigns under."""
        return self._node or f"beat@{socket.gethostname()}:{self.pid}"

    @property
    def log(self) -> str:
        """Everything it has said."""
        return self.log_file.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it runs or is stopped; a look does not reap it, so its id stays its own."""
        return self._running.exit_status() is None

    def says(self, text: str) -> Process:
        """Wait until its log has ``text``."""

        def said() -> bool:
            if text in self.log:
                return True
            assert self.alive, f"{self.name} ended before it said {text!r}"
            return False

        wait_until(said, what=f"{self.name} to say {text!r}")
        return self

    def tell(self, number: int) -> None:
        """Send ``number`` to the main process alone."""
        os.kill(self.pid, number)

    def freeze(self) -> None:
        """Stop all its processes in their tracks."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Have them go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End all its processes at once."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def kill_child(self, pid: int) -> None:
        """End one of its pool processes at once."""
        assert os.getpgid(pid) == self.pid, f"{pid} is none of {self.name}'s"
        os.kill(pid, signal.SIGKILL)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, and return its exit code when it has."""
        self.tell(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        # A pool process waits up to 30 s for its last result to be read, in vain now and then.
        wait_until(lambda: not self.alive, what=f"{self.name} to end", timeout=60)
        status = self._running.exit_status()
        assert status is not None
        return status

    def close(self) -> None:
        """Kill whatever of it is left."""
        self._running.kill_and_reap()
