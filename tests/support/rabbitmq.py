"""A private RabbitMQ node, as a subprocess on free ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from kombu import Connection

from examples.rabbitmq.server import node_environment, port_mapper, rabbitmq_binary
from tests.support.launching import launch
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until

_PATIENCE = 90.0  # seconds; Erlang takes its time where there is little of it


class RabbitMQ:
    """One node, which runs from ``start`` to ``close``; durable things outlive a restart."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="celery-leader-rabbitmq-"))
        # The node may drop to a user of its own.
        self._directory.chmod(0o777)
        self._port = free_port()
        self._ports = {"distribution_port": free_port(), "mapper_port": free_port()}
        self._process: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its URL as a Celery broker."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def start(self) -> RabbitMQ:
        """Run it, and return when it answers."""
        binary = rabbitmq_binary()
        assert binary is not None, "there is no rabbitmq-server here"
        self._mapper = subprocess.Popen(port_mapper(self._ports["mapper_port"]))
        self._process = launch(
            [binary],
            self._directory / "out",
            env=node_environment(self._directory, port=self._port, **self._ports),
            cwd=self._directory,
        )
        try:
            wait_until(self._answers, _PATIENCE, "RabbitMQ to answer")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it said: {self._said()}") from None
        return self

    def stop(self) -> None:
        """End it in good order; ``start`` runs it again with what was durable."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """End it for good."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None or self._mapper is None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(_PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            self._mapper.kill()
            self._mapper.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"RabbitMQ ended; it said: {self._said()}"
        try:
            with Connection(self.url, connect_timeout=5) as connection:
                connection._establish_connection().close()
        except OSError:
            return False
        return True

    def _said(self) -> str:
        return (self._directory / "out").read_text(errors="replace")[-2000:]
