"""A private redis-server, as a subprocess on a free port of 127.0.0.1.

The tests may stop, pause, restart and kill it. It keeps nothing on disk, so a restart
loses all data.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import redis

from examples.machine import free_port as free_port
from examples.machine import redis_server
from tests.support.launching import kill_group, launch
from tests.support.waiting import wait_until

#: Names another redis-server (or valkey-server) to run the tests against.
BINARY_VARIABLE = "CELERY_LEADER_TEST_REDIS_SERVER"
_PORTS_TO_TRY = 10


def redis_binary() -> str | None:
    """The redis-server to run: the one asked for, or what there is here."""
    return os.environ.get(BINARY_VARIABLE) or redis_server()


class RedisServer:
    """One redis-server, which runs from ``start`` to ``stop``.

    Args:
        options: more options of its command line, e.g. ``("--requirepass", "secret")``.
        password: the password that ``options`` sets, if any.
        port: where to listen; by default a free one, kept across restarts.
    """

    def __init__(
        self, options: Sequence[str] = (), *, password: str | None = None, port: int | None = None
    ) -> None:
        self._options = tuple(options)
        self._password = password
        self._fixed_port = port
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="celery-leader-redis-"))

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        assert self._port is not None, "the server was not started"
        return self._port

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def url(self) -> str:
        """Its URL as a Celery broker, database 0, with the password if it has one."""
        secret = f":{self._password}@" if self._password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A client of its own to look in and to set the scene with."""
        client = redis.Redis(
            host="127.0.0.1", port=self.port, password=self._password, socket_timeout=30
        )
        with contextlib.closing(client):
            yield client

    def start(self) -> RedisServer:
        """Run it, and return when it answers."""
        for _ in range(_PORTS_TO_TRY):
            if self._fixed_port is None and self._port is None:
                self._port = free_port()
            self._launch()
            if wait_until(self._up_or_gone, what=f"redis-server on port {self._port}") == "up":
                return self
            self._process = None
            if self._fixed_port is None:
                self._port = None  # somebody else was faster
        raise AssertionError(f"redis-server does not start; its log: {self._log()}")

    def restart(self) -> None:
        """Kill it and run it again on the same port, with all data lost."""
        self.kill()
        self._fixed_port = self._port
        self.start()

    def pause(self) -> None:
        """Stop it in its tracks: it accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on after ``pause``."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; ``start`` runs it again on the same port."""
        process, self._process = self._process, None
        if process is not None:
            kill_group(process)

    def stop(self) -> None:
        """End it for good."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _launch(self) -> None:
        binary = redis_binary()
        assert binary is not None, "there is no redis-server here"
        listening = ("--port", str(self._port), "--bind", "127.0.0.1")
        nothing_kept = ("--save", "", "--appendonly", "no", "--dir", str(self._directory))
        command = [binary, *listening, *nothing_kept, *self._options]
        self._process = launch(command, self._directory / "log")

    def _up_or_gone(self) -> str | None:
        assert self._process is not None
        if self._process.poll() is not None:
            return "gone"
        try:
            with self.client() as client:
                ours = client.info("server")["process_id"] == self._process.pid
        except redis.exceptions.RedisError:
            return None
        return "up" if ours else None

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return (self._directory / "log").read_text(errors="replace")[-2000:]
        return "(none)"
