"""The processes of one show: each in a group of its own, its output in a file, none left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import redis

from examples.machine import free_port, how_to_get_redis_server, redis_server

GRACE = 10.0  # seconds between asking a process to end and ending it
STEP = 0.05  # seconds between two looks at anything
PORTS_TO_TRY = 5


class ShowError(Exception):
    """The show cannot go on; the message says why."""


class NoRedisServer(ShowError):
    """There is no redis-server that could be used."""


class Interrupted(Exception):
    """Somebody asked the show to end."""


class Interrupts:
    """Ctrl-C and its like, heard from the first process to the last and obeyed between two steps.

    An exception out of a signal handler could fall between the start of a process and
    the note that it is ours.
    """

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self.received = number

    def obey(self) -> None:
        """Raise ``Interrupted`` if there was one."""
        if self.received:
            raise Interrupted


class Process:
    """One process of the show, leader of a process group of its own."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pid = popen.pid
        self.fate = ""  # how the show ended it, once it has
        self._gone = False
        self._popen = popen
        self._log = log

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What it ended with, once it has."""
        return self._popen.poll()

    def terminate(self) -> None:
        """Ask it to end."""
        self.fate = self.fate or "stopped"
        with contextlib.suppress(ProcessLookupError):
            self._popen.terminate()

    def kill(self) -> None:
        """End it and whatever it started, at once, as a machine that loses its power would."""
        self.fate = self.fate or "killed"
        if self._gone:
            return  # the number of its group may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._gone = True

    @property
    def log(self) -> str:
        """Everything it has said."""
        return self._log.read_text(errors="replace")

    def epitaph(self) -> str:
        """What it ended with and the last lines it wrote."""
        ended = "still runs" if self.alive else f"ended with code {self._popen.returncode}"
        with contextlib.suppress(OSError):
            lines = self.log.splitlines()[-12:]
            return "\n".join([f"--- {self.name} {ended}; its last lines:", *lines])
        return f"--- {self.name} {ended}"


class Processes:
    """All processes of one show, and the directory that holds their files."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="celery-leader-show-"))
        self._all: list[Process] = []
        self._servers: list[Process] = []

    def start(
        self, name: str, command: Sequence[str], env: dict[str, str] | None = None
    ) -> Process:
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                command,
                cwd=self.directory,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the whole foreground group; they are not to hear it.
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self._all.append(process)
        return process

    def serve(
        self, name: str, command: Sequence[str], env: dict[str, str] | None = None
    ) -> Process:
        """Start what the others need, and what is therefore ended after them."""
        server = self.start(name, command, env)
        self._servers.append(server)
        return server

    def unexpected_ends(self) -> list[Process]:
        """Who has ended without having been told to."""
        return [process for process in self._all if not process.fate and not process.alive]

    def epitaphs(self) -> str:
        """The last lines of all that have ended by themselves, or else of all."""
        return "\n".join(process.epitaph() for process in self.unexpected_ends() or self._all)

    def stop(self, some: Iterable[Process]) -> None:
        """Ask ``some`` to end, and end those that do not."""
        some = list(some)
        for process in some:
            process.terminate()
        deadline = time.monotonic() + GRACE
        while any(process.alive for process in some) and time.monotonic() < deadline:
            time.sleep(STEP)
        for process in some:
            process.kill()  # the children of one that has ended, too

    def stop_all(self) -> None:
        """End everything, the servers last."""
        self.stop(process for process in self._all if process not in self._servers)
        self.stop(self._servers)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop_all()
        shutil.rmtree(self.directory, ignore_errors=True)


class RedisServer:
    """A private redis-server on a free port of this machine, which keeps nothing on disk."""

    def __init__(
        self, processes: Processes, *options: str, name: str = "redis-server", target: str = "demo"
    ) -> None:
        self._binary = redis_binary(target)
        for _ in range(PORTS_TO_TRY):
            self.port = free_port()
            self.url = f"redis://127.0.0.1:{self.port}/0"
            listening = ["--port", str(self.port), "--bind", "127.0.0.1"]
            nothing_kept = ["--save", "", "--appendonly", "no"]
            command = [self._binary, *listening, *nothing_kept, *options]
            self.process = processes.serve(name, command)
            if self._answers():
                return
            self.process.terminate()  # somebody else was faster to take the port
        raise ShowError(f"{self._binary} does not start\n{self.process.epitaph()}")

    def _answers(self) -> bool:
        deadline = time.monotonic() + GRACE
        with contextlib.closing(redis.Redis.from_url(self.url, socket_timeout=1)) as client:
            while self.process.alive and time.monotonic() < deadline:
                with contextlib.suppress(redis.RedisError):
                    return bool(client.info("server")["process_id"] == self.process.pid)
                time.sleep(STEP)
        return False


def redis_binary(target: str) -> str:
    """The redis-server to run.

    Args:
        target: what ``make`` was asked for, to be asked for again.

    Raises:
        NoRedisServer: there is none; it names the ways to get one.
    """
    binary = redis_server()
    if binary is None:
        raise NoRedisServer(how_to_get_redis_server(target))
    return binary
