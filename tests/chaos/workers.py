"""The workers, each behind its own proxy."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import task_app
from tests.chaos.supervised import Supervised, Supervisor
from tests.support.proxy import Proxy


class Worker(Supervised):
    """One place for a worker, which consumes a queue of its own too."""

    # Celery's own warm shutdown can hang; then it is killed, as any supervisor would.
    ends_within = 10.0

    def __init__(self, number: int, proxy: Proxy, config: Any, logs: Path) -> None:
        super().__init__(f"worker{number}", proxy, logs)
        self.queue = f"chaos{number}"
        self._config = {**config, "broker": proxy.url}
        self._started = 0

    @property
    def node(self) -> str:
        """Its node name, which no other process ever has: a new one is another."""
        return f"{self.queue}.{self._started}@chaos"

    def start(self) -> None:
        """Run it."""
        self._started += 1
        super().start()

    def command(self) -> list[str]:
        """What to run, program first."""
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.task_app", "worker"]
        what = ["-n", self.node, "-Q", f"celery,{self.queue}", "-c", "2", "-l", "info"]
        return [*command, *what, "--without-mingle", "--without-gossip"]

    def environment(self) -> dict[str, str]:
        """What to add to the environment."""
        return {task_app.VARIABLE: json.dumps(self._config)}

    def before_it_is_killed(self) -> None:
        """Have Celery write into the log where each thread is."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        time.sleep(0.3)

    def kill_one_child(self) -> None:
        """End one of its pool processes at once."""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            children = psutil.Process(self.pid).children()
            if children:
                os.kill(min(child.pid for child in children), signal.SIGKILL)


class Workers(Supervisor[Worker]):
    """All of them, from ``with`` to its end."""

    def __init__(self, count: int, redis_port: int, config: Any, logs: Path) -> None:
        super().__init__(
            count, redis_port, lambda number, proxy: Worker(number, proxy, config, logs)
        )
