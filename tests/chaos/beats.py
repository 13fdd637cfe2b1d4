"""The beats, each behind its own proxy."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

from tests.chaos import app
from tests.chaos.supervised import Supervised, Supervisor
from tests.support.proxy import Proxy


class Beat(Supervised):
    """One place for a beat."""

    def __init__(self, number: int, proxy: Proxy, scheduler: str, config: Any, logs: Path):
        super().__init__(f"beat{number}", proxy, logs)
        self._scheduler = scheduler
        self._config = {**config, "broker": proxy.url}

    @property
    def node(self) -> str:
        """The node name it campaigns under."""
        return f"beat@{socket.gethostname()}:{self.pid}"

    def command(self) -> list[str]:
        """What to run, program first."""
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.app", "beat", "-l", "info"]
        return [*command, "-S", self._scheduler, "--pidfile", ""]

    def environment(self) -> dict[str, str]:
        """What to add to the environment."""
        return {app.VARIABLE: json.dumps(self._config)}


class Beats(Supervisor[Beat]):
    """All of them, from ``with`` to its end."""

    def __init__(
        self, count: int, redis_port: int, scheduler: str, config: Any, logs: Path
    ) -> None:
        super().__init__(
            count, redis_port, lambda number, proxy: Beat(number, proxy, scheduler, config, logs)
        )
