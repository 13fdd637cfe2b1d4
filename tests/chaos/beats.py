"""The beats, each behind its own proxy, and who starts them again when they have ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import app
from tests.chaos.proxy import LossyProxy

ROOT = Path(__file__).resolve().parents[2]
_RESTART_AFTER = 0.5  # seconds, as a supervisor would
_ENDS_WITHIN = 30.0  # seconds from SIGTERM; used up by a failure only


@dataclass(frozen=True, slots=True)
class Death:
    """A beat that ended although nobody had told it to, or did not although it was told."""

    at: int
    beat: str
    what: str
    log: Path


class Beat:
    """One place for a beat: its proxy, its log, and the process that is there now."""

    def __init__(self, number: int, proxy: LossyProxy, scheduler: str, config: Any, logs: Path):
        self.number = number
        self.proxy = proxy
        self.log = logs / f"beat{number}.log"
        self._scheduler = scheduler
        self._config = {**config, "broker": proxy.url}
        self._process: subprocess.Popen[bytes] | None = None
        self._told_at: float | None = None
        self._ended_at: float | None = None
        self._lock = threading.RLock()

    @property
    def pid(self) -> int:
        """The process id, 0 if there is none."""
        process = self._process
        return process.pid if process is not None else 0

    @property
    def node(self) -> str:
        """The node name it campaigns under."""
        return f"beat@{socket.gethostname()}:{self.pid}"

    @property
    def settled(self) -> bool:
        """Whether it runs, and was not told to end."""
        with self._lock:
            running = self._process is not None and self._process.poll() is None
            return running and self._told_at is None

    def start(self) -> None:
        """Run it."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CELERY_")}
        environment |= {app.VARIABLE: json.dumps(self._config), "PYTHONUNBUFFERED": "1"}
        command = ["-m", "celery", "-A", "tests.chaos.app", "beat", "-l", "info"]
        with self._lock, self.log.open("ab") as out:
            self._told_at = self._ended_at = None
            self._process = subprocess.Popen(
                [sys.executable, *command, "-S", self._scheduler, "--pidfile", ""],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def tell(self, number: int) -> None:
        """Send ``number``; SIGTERM and SIGKILL are meant to end it."""
        with self._lock:
            if self._process is None:
                return
            if number in (signal.SIGTERM, signal.SIGKILL):
                self._told_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def attend(self) -> str | None:
        """Start it again when it has ended; what is wrong with how it ended."""
        with self._lock:
            if self._process is None:
                return None
            if self._process.poll() is None:
                if self._told_at is None or time.monotonic() < self._told_at + _ENDS_WITHIN:
                    return None
                self._told_at = time.monotonic()
                os.kill(self._process.pid, signal.SIGKILL)
                return f"did not end within {_ENDS_WITHIN:g} s of SIGTERM"
            if self._ended_at is None:
                self._ended_at = time.monotonic()
                if self._told_at is None:
                    return f"ended by itself, exit code {self._process.returncode}"
            elif time.monotonic() >= self._ended_at + _RESTART_AFTER:
                self.start()
            return None

    def end(self) -> None:
        """Kill it for good."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Beats:
    """All of them, from ``with`` to its end, with a thread that starts them again."""

    def __init__(
        self, count: int, redis_port: int, scheduler: str, config: Any, logs: Path
    ) -> None:
        self._open = contextlib.ExitStack()
        self._made = (count, redis_port, scheduler, config, logs)
        self.all: list[Beat] = []
        self.deaths: list[Death] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="supervisor", daemon=True)

    def __enter__(self) -> Beats:
        count, redis_port, scheduler, config, logs = self._made
        for number in range(count):
            proxy = self._open.enter_context(LossyProxy(redis_port))
            beat = Beat(number, proxy, scheduler, config, logs)
            self._open.callback(beat.end)
            self.all.append(beat)
            beat.start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(10)
        self._open.close()

    def of_pid(self, pid: int) -> Beat | None:
        """The beat whose process this is."""
        return next((beat for beat in self.all if beat.pid == pid), None)

    def of_node(self, node: str) -> Beat | None:
        """The beat that campaigns under this name."""
        return next((beat for beat in self.all if beat.node == node), None)

    def _attend(self) -> None:
        while not self._over.wait(0.05):
            for beat in self.all:
                wrong = beat.attend()
                if wrong:
                    at = time.time_ns() // 1000
                    self.deaths.append(Death(at, f"beat{beat.number}", wrong, beat.log))
