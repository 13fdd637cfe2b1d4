"""What runs an example before your eyes: it starts the example's own app the way you would.

The apps to copy know nothing of this. A show says what it does and sees, line by line, ends
everything it started, and exits with 0 when it saw what it is meant to show.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from celery import Celery

from celery_leader import LeaderElection, LeaderError
from examples.machine import free_port
from examples.processes import (
    STEP,
    Interrupted,
    Interrupts,
    Process,
    Processes,
    RedisServer,
    ShowError,
)

_LAST_PORT = 65535
PATIENCE = 120.0  # seconds; only ever used up by a failure

T = TypeVar("T")


class Show:
    """One example, shown.

    Args:
        target: what ``make`` was asked for.
        processes: what it starts, ended by the caller.
        interrupts: what asks it to end early.
        stays: whether it goes on at the end until it is asked to end.
        asked_port: where its web server is to listen; any free port if that is 0.
    """

    def __init__(
        self,
        target: str,
        processes: Processes,
        interrupts: Interrupts,
        *,
        stays: bool = False,
        asked_port: int = 0,
    ) -> None:
        self.target = target
        self.processes = processes
        self.directory = processes.directory
        self._interrupts = interrupts
        self._stays = stays
        self._asked_port = asked_port
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """One line of what happens."""
        print(f"{time.monotonic() - self._started:5.1f} s  {text}", flush=True)

    def wait(self, condition: Callable[[], T | None], what: str) -> T:
        """The first true answer of ``condition``.

        Raises:
            ShowError: there was none in time, or a process ended by itself.
            Interrupted: somebody asked the show to end.
        """
        deadline = time.monotonic() + PATIENCE
        while not (answer := condition()):
            self._interrupts.obey()
            if self.processes.unexpected_ends():
                raise ShowError(f"a process ended by itself\n{self.processes.epitaphs()}")
            if time.monotonic() > deadline:
                raise ShowError(
                    f"waited {PATIENCE:g} s in vain for {what}\n{self.processes.epitaphs()}"
                )
            time.sleep(STEP)
        return answer

    def redis(self, *options: str, name: str = "redis-server") -> RedisServer:
        """A private Redis server that answers."""
        return RedisServer(self.processes, *options, name=name, target=self.target)

    def run(self, name: str, command: list[str], env: Mapping[str, str]) -> str:
        """What ``command`` says until its end.

        Raises:
            ShowError: it failed.
        """
        process = self.processes.start(name, command, dict(env))
        process.fate = "run to its end"
        self.wait(lambda: not process.alive, f"{name} to end")
        if process.exit_code:
            raise ShowError(process.epitaph())
        return process.log

    def port(self) -> int:
        """Where a web server of this show may listen.

        Raises:
            ShowError: the port that was asked for is taken.
        """
        if not self._asked_port:
            return free_port()
        try:
            with socket.create_server(("127.0.0.1", self._asked_port)):
                return self._asked_port
        except OSError as exc:
            raise ShowError(
                f"port {self._asked_port} cannot be used ({exc.strerror}); name another:"
                f" make {self.target} EXAMPLE='--port {self._asked_port + 1}'"
            ) from exc

    def stay(self, invitation: str) -> None:
        """Go on until somebody asks this to end, if that is wanted."""
        if not self._stays:
            return
        self.say(f"{invitation} Ctrl-C ends everything.")
        try:
            self.wait_for_ever()
        except Interrupted:
            self.say("ending everything")

    def wait_for_ever(self) -> None:
        """Wait until somebody asks this to end."""
        while True:
            self._interrupts.obey()
            if self.processes.unexpected_ends():
                raise ShowError(f"a process ended by itself\n{self.processes.epitaphs()}")
            time.sleep(STEP)


class Fleet:
    """The workers and beats of one example.

    Args:
        show: what starts them.
        directory: where the app is.
        app: what ``celery -A`` is given.
        env: what the app reads from its environment.
        conf: settings with which the elections are found: the broker, and what goes with it.
    """

    def __init__(
        self, show: Show, directory: Path, app: str, *, env: Mapping[str, str], **conf: object
    ) -> None:
        self._show = show
        self._app = app
        # Celery's own variables would have a say in the app's settings.
        plain = {key: value for key, value in os.environ.items() if not key.startswith("CELERY_")}
        self.env = {**plain, "PYTHONPATH": str(directory), **env}
        self._elections = Celery("show", set_as_current=False)
        self._elections.conf.update(conf)
        self.workers: list[Process] = []
        self.beats: list[Process] = []

    def worker(self, name: str, *options: str) -> Process:
        """Start a worker of that name."""
        command = self._celery("worker", "-n", f"{name}@example", "-c", "1", "-l", "INFO")
        self.workers.append(self._show.processes.start(name, [*command, *options], self.env))
        return self.workers[-1]

    def beat(self, name: str, scheduler: str = "leader") -> Process:
        """Start a beat, called so here."""
        command = self._celery("beat", "-S", scheduler, "-l", "INFO")
        self.beats.append(self._show.processes.start(name, command, self.env))
        return self.beats[-1]

    def start(self, scheduler: str = "leader") -> None:
        """Start two workers and two beats, and wait until one of each leads."""
        self._show.say("starting two workers and two beats")
        for number in ("one", "two"):
            self.worker(f"worker-{number}")
            self.beat(f"beat-{number}", scheduler)
        worker, beat = self.leader("worker"), self.leader("beat")
        self._show.say(f"{worker.name} leads the workers, {beat.name} the beats")

    def leader(self, election: str, other_than: Process | None = None) -> Process:
        """Wait until one of these processes leads, and not ``other_than``."""

        def leading() -> Process | None:
            try:
                leader = LeaderElection(self._elections, election).leader()
            except LeaderError:  # Redis is away for the moment
                return None
            for process in (*self.workers, *self.beats):
                if leader is not None and process is not other_than and process.alive:
                    node = leader.holder
                    if node == f"{process.name}@example" or node.endswith(f":{process.pid}"):
                        return process
            return None

        return self._show.wait(leading, f"a leader of {election}")

    def hand_over(self, election: str) -> Process:
        """Stop the leader of ``election`` with SIGTERM, and wait for the next."""
        old = self.leader(election)
        self._show.say(f"SIGTERM to {old.name}, which leads")
        old.terminate()
        new = self.leader(election, other_than=old)
        self._show.say(f"{new.name} leads now")
        self._show.wait(lambda: not old.alive, f"{old.name} to end")
        return new

    def runs(self, task: str) -> dict[str, list[str]]:
        """The ids of the runs of ``task``, by the worker that ran them."""
        done = re.compile(rf"Task {re.escape(task)}\[([^]]+)\] succeeded")
        return {worker.name: done.findall(worker.log) for worker in self.workers}

    def ran(self, task: str, more: int) -> None:
        """Wait until ``task`` ran ``more`` times from now on, and say where."""
        before = self.runs(task)
        goal = sum(map(len, before.values())) + more

        def enough() -> bool:
            return sum(map(len, self.runs(task).values())) >= goal

        self._show.wait(enough, f"{task} to run {more} times")
        now = self.runs(task)
        fresh = {name: len(now[name]) - len(before[name]) for name in now}
        where = ", ".join(f"{count} on {name}" for name, count in fresh.items() if count)
        self._show.say(f"{task} ran: {where}")

    def _celery(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", self._app, *arguments]


def main(target: str, story: Callable[[Show], None]) -> int:
    """Run ``story``; the exit code says what came of it."""
    parser = argparse.ArgumentParser(
        prog=f"make {target} EXAMPLE=", description="Options of an example."
    )
    parser.add_argument("--stay", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "--port", type=int, default=0, help="where to serve pages, if it serves any"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.port <= _LAST_PORT:
        parser.error(f"--port is {arguments.port}: it must be {_LAST_PORT} at most")
    interrupts = Interrupts()
    with Processes() as processes:
        show = Show(target, processes, interrupts, stays=arguments.stay, asked_port=arguments.port)
        try:
            story(show)
        except Interrupted:
            print("interrupted; everything was stopped", file=sys.stderr)
            return 128 + interrupts.received
        except ShowError as exc:
            print(f"error: {exc}", file=sys.stderr)
            return 2
    show.say("done")
    return 0
