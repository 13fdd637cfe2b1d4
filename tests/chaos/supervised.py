"""Processes, each behind its own proxy, and who starts them again when they have ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from tests.chaos.moments import present
from tests.support.launching import kill_group, launch, without_celery_variables
from tests.support.proxy import Proxy

_RESTART_AFTER = 0.5  # seconds, as a supervisor would


@dataclass(frozen=True, slots=True)
class Death:
    """A process that ended although nobody had told it to, or did not although it was told."""

    at: int
    name: str
    what: str
    log: Path
    told: bool


class Supervised:
    """One place for a process: its proxy, its log, and the process that is there now.

    ``command`` and ``environment`` say what to run, each time anew.
    """

    #: Seconds from SIGTERM; used up by a failure only.
    ends_within = 30.0
    #: What would end it only wakes it, if it was stopped.
    spared = False

    def __init__(self, name: str, proxy: Proxy, logs: Path) -> None:
        self.name = name
        self.proxy = proxy
        self.log = logs / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._told_at: float | None = None
        self._ended_at: float | None = None
        self._lock = threading.RLock()

    @property
    def node(self) -> str:
        """The node name it campaigns under."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """What to run, program first."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What to add to the environment."""
        raise NotImplementedError

    def before_it_is_killed(self) -> None:
        """It does not end: what else is wanted of it."""

    @property
    def pid(self) -> int:
        """The process id, 0 if there is none."""
        process = self._process
        return process.pid if process is not None else 0

    @property
    def settled(self) -> bool:
        """Whether it runs, and was not told to end."""
        with self._lock:
            running = self._process is not None and self._process.poll() is None
            return running and self._told_at is None

    def start(self) -> None:
        """Run it."""
        environment = without_celery_variables(PYTHONUNBUFFERED="1", **self.environment())
        with self._lock:
            self._told_at = self._ended_at = None
            self._process = launch(self.command(), self.log, env=environment)

    def tell(self, number: int) -> None:
        """Send ``number``; SIGTERM and SIGKILL are meant to end it."""
        self._send(number, os.kill)

    def tell_all(self, number: int) -> None:
        """Send ``number`` to it and all its children."""
        self._send(number, os.killpg)

    def _send(self, number: int, kill: Callable[[int, int], None]) -> None:
        with self._lock:
            if self._process is None:
                return
            if number in (signal.SIGTERM, signal.SIGKILL):
                if self.spared:
                    number = signal.SIGCONT
                else:
                    self._told_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                kill(self._process.pid, number)

    def attend(self) -> tuple[str, bool] | None:
        """Start it again when it has ended; what is wrong with how it ended, and if it was told."""
        with self._lock:
            if self._process is None:
                return None
            if self._process.poll() is None:
                if self._told_at is None or time.monotonic() < self._told_at + self.ends_within:
                    return None
                self._told_at = time.monotonic()
                self.before_it_is_killed()
                os.killpg(self._process.pid, signal.SIGKILL)
                return f"did not end within {self.ends_within:g} s of SIGTERM", True
            if self._ended_at is None:
                self._ended_at = time.monotonic()
                if self._told_at is None:
                    return f"ended by itself, exit code {self._process.returncode}", False
            elif time.monotonic() >= self._ended_at + _RESTART_AFTER:
                self.start()
            return None

    def end(self) -> None:
        """Kill it for good."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            kill_group(process)


P = TypeVar("P", bound=Supervised)


class Supervisor(Generic[P]):
    """All of them, from ``with`` to its end, with a thread that starts them again.

    Args:
        count: how many.
        redis_port: what stands behind their proxies.
        make: one of them, given its number and its proxy.
    """

    def __init__(self, count: int, redis_port: int, make: Callable[[int, Proxy], P]) -> None:
        self._open = contextlib.ExitStack()
        self._made = (count, redis_port, make)
        self.all: list[P] = []
        self.deaths: list[Death] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor[P]:
        count, redis_port, make = self._made
        for number in range(count):
            proxy = self._open.enter_context(Proxy(redis_port))
            one = make(number, proxy)
            self._open.callback(one.end)
            self.all.append(one)
            one.start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(10)
        self._open.close()

    def of_pid(self, pid: int) -> P | None:
        """The one whose process this is."""
        return next((one for one in self.all if one.pid == pid), None)

    def of_node(self, node: str) -> P | None:
        """The one that campaigns under this name."""
        return next((one for one in self.all if one.node == node), None)

    def _attend(self) -> None:
        while not self._over.wait(0.05):
            for one in self.all:
                wrong = one.attend()
                if wrong:
                    at = present()
                    what, told = wrong
                    self.deaths.append(Death(at, one.name, what, one.log, told))
