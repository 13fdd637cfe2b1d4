"""A Redis master, its replicas and three Sentinels, as processes that a test may harm."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import redis

from examples.sentinel.servers import knows, sentinel_configuration
from tests.support.launching import kill_group, launch
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import wait_until

MASTER = "fleet"
REPLICAS = 2
SENTINELS = 3
PATIENCE = 90.0  # seconds; a failover that got stuck is tried again by the Sentinels

#: Redis waits for more replicas before it sends its data to the first, if it may.
EAGER = ("--repl-diskless-sync-delay", "0")


def replica_of(port: int) -> RedisServer:
    """A server, not yet started, that follows the one on ``port``."""
    return RedisServer((*EAGER, "--replicaof", "127.0.0.1", str(port)))


def confirms(master: RedisServer, count: int) -> None:
    """Wait until ``count`` replicas of ``master`` confirm what is written."""

    def confirmed() -> bool:
        with master.client() as client:
            client.set("a-write", 1)
            return client.wait(count, 100) >= count

    wait_until(confirmed, what=f"{count} replica(s) to confirm a write")


class Watched:
    """Servers and Sentinels, ours from ``start`` to ``close``."""

    def __init__(self, binary: str, directory: Path) -> None:
        self._binary = binary
        self._directory = directory
        self._servers: list[RedisServer] = []
        self._ports = [free_port() for _ in range(SENTINELS)]
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """The broker URL: all Sentinels."""
        return ";".join(f"sentinel://127.0.0.1:{port}" for port in self._ports)

    def start(self) -> Watched:
        """Run everything, and return when all know each other."""
        first = RedisServer(EAGER).start()
        self._servers.append(first)
        for _ in range(REPLICAS):
            self._servers.append(replica_of(first.port).start())
        confirms(first, REPLICAS)
        for number, port in enumerate(self._ports):
            self._sentinels.append(self._sentinel(number, port, first.port))
        for port in self._ports:
            wait_until(
                lambda port=port: knows(port, MASTER, REPLICAS, SENTINELS - 1),
                PATIENCE,
                "the Sentinels to know each other and the replicas",
            )
        return self

    def master(self) -> RedisServer:
        """Whom the Sentinels name, when they agree and it is one that answers as a master."""
        return wait_until(self._agreed, PATIENCE, "the Sentinels to agree") or self._servers[0]

    def next_master(self, old: RedisServer) -> RedisServer:
        """Wait until another than ``old`` is named."""

        def other() -> RedisServer | None:
            agreed = self._agreed()
            return agreed if agreed is not old else None

        found = wait_until(other, PATIENCE, "the Sentinels to promote a replica")
        assert found is not None
        return found

    def close(self) -> None:
        """End everything."""
        for sentinel in self._sentinels:
            kill_group(sentinel)
        for server in self._servers:
            server.stop()

    def _agreed(self) -> RedisServer | None:
        named = set()
        for port in self._ports:
            with contextlib.closing(redis.Redis(port=port, socket_timeout=5)) as client:
                named.add(int(client.sentinel_get_master_addr_by_name(MASTER)[1]))
        return next((each for each in self._servers if {each.port} == named), None)

    def _sentinel(self, number: int, port: int, master_port: int) -> subprocess.Popen[bytes]:
        configuration = self._directory / f"sentinel-{number}.conf"
        configuration.write_text(
            sentinel_configuration(
                port,
                self._directory,
                master_name=MASTER,
                master_port=master_port,
                quorum=2,
                down_after=1.0,
                failover_timeout=5.0,
            )
        )
        command = [self._binary, str(configuration), "--sentinel"]
        return launch(command, self._directory / f"sentinel-{number}.log")
