"""A private PostgreSQL server, as a subprocess on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.support.launching import kill_group, launch
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until

_USER = "postgres"
_PATIENCE = 60.0  # seconds


def postgres_binaries() -> Path | None:
    """Where the newest PostgreSQL's programs are, where there is one; Debian has no links."""
    there = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if there:
        return there[-1].parent
    found = shutil.which("pg_isready")
    return Path(found).resolve().parent if found else None


class Postgres:
    """One server, which runs from ``start`` to ``close``; its data outlive a restart."""

    def __init__(self) -> None:
        binaries = postgres_binaries()
        assert binaries is not None, "there is no PostgreSQL here"
        self._binaries = binaries
        self._directory = Path(tempfile.mkdtemp(prefix="celery-leader-postgres-"))
        self._directory.chmod(0o777)
        self._data = self._directory / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root, and Debian's package has made a user for it.
        self._user = _USER if os.geteuid() == 0 else None
        self._run("initdb", "-D", str(self._data), "-U", _USER, "-A", "trust", "-E", "UTF8", "-N")

    @property
    def url(self) -> str:
        """Its URL as a result backend of Celery's own."""
        return f"db+postgresql+psycopg2://{_USER}@127.0.0.1:{self.port}/postgres"

    @property
    def django(self) -> dict[str, object]:
        """It as a database of Django."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": _USER,
            "HOST": "127.0.0.1",
            "PORT": self.port,
        }

    def start(self) -> Postgres:
        """Run it, and return when it answers."""
        self._process = launch(
            [
                str(self._binaries / "postgres"),
                *("-D", str(self._data), "-p", str(self.port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                *("-c", f"unix_socket_directories={self._directory}"),
            ],
            self._directory / "out",
            cwd=self._directory,
            user=self._user,
        )
        wait_until(self._answers, _PATIENCE, "PostgreSQL to answer")
        return self

    def stop(self) -> None:
        """End it, and every connection to it, at once; ``start`` runs it again with its data."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)  # what it calls a fast shutdown
            process.wait(_PATIENCE)

    def close(self) -> None:
        """End it for good."""
        process, self._process = self._process, None
        if process is not None:
            kill_group(process, _PATIENCE)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process is not None
        said = (self._directory / "out").read_text(errors="replace")[-2000:]
        assert self._process.poll() is None, f"PostgreSQL ended; it said: {said}"
        ready = subprocess.run(
            [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)],
            check=False,
        )
        return ready.returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._binaries / program), *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self._directory,
        )
