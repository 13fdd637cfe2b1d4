"""One master, its replicas and the Sentinels that watch them, as processes of this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

import redis

from examples.machine import free_port
from examples.processes import redis_binary
from examples.show import Show

MASTER_NAME = "example"
REPLICAS = 2
SENTINELS = 3
DOWN_AFTER = 2.0  # seconds until a Sentinel takes a server that is silent for down
FAILOVER_TIMEOUT = 10.0  # seconds after which a failover that got stuck is tried again


class SentinelServers:
    """The servers of one show.

    Attributes:
        url: what ``broker_url`` is to be: all Sentinels, one after the other.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        # Redis waits for more replicas before it sends its data to the first, if it may.
        eager = ("--repl-diskless-sync-delay", "0")
        self.servers = {"master": show.redis(*eager, name="redis-master")}
        behind = ("--replicaof", "127.0.0.1", str(self.servers["master"].port))
        for number in range(1, REPLICAS + 1):
            name = f"redis-replica-{number}"
            self.servers[name] = show.redis(*eager, *behind, name=name)
        self._sentinels = [self._sentinel(number) for number in range(1, SENTINELS + 1)]
        self.url = ";".join(f"sentinel://127.0.0.1:{port}" for port in self._sentinels)
        show.wait(self._know_each_other, "the Sentinels to know each other and the replicas")

    def master_port(self) -> int | None:
        """Which port the Sentinels name; ``None`` while they do not agree."""
        named = set()
        for port in self._sentinels:
            with contextlib.closing(_client(port)) as client:
                named.add(client.sentinel_get_master_addr_by_name(MASTER_NAME)[1])
        return int(named.pop()) if len(named) == 1 else None

    def kill_master(self) -> None:
        """Kill the master, and wait until the Sentinels have made another."""
        old = self.servers["master"]
        old.process.kill()

        def failed_over() -> int | None:
            port = self.master_port()
            return port if port != old.port else None

        port = self._show.wait(failed_over, "the Sentinels to promote a replica")
        (name,) = [name for name, server in self.servers.items() if server.port == port]
        self._show.say(f"the Sentinels have promoted {name}")

    def _sentinel(self, number: int) -> int:
        port = free_port()
        file = self._show.directory / f"sentinel-{number}.conf"
        file.write_text(
            sentinel_configuration(
                port,
                self._show.directory,
                master_name=MASTER_NAME,
                master_port=self.servers["master"].port,
                quorum=SENTINELS // 2 + 1,
                down_after=DOWN_AFTER,
                failover_timeout=FAILOVER_TIMEOUT,
            )
        )
        command = [redis_binary(self._show.target), str(file), "--sentinel"]
        self._show.processes.serve(f"sentinel-{number}", command)
        return port

    def _know_each_other(self) -> bool:
        return all(knows(port, MASTER_NAME, REPLICAS, SENTINELS - 1) for port in self._sentinels)


def sentinel_configuration(
    port: int,
    directory: Path,
    *,
    master_name: str,
    master_port: int,
    quorum: int,
    down_after: float,
    failover_timeout: float,
) -> str:
    """The file of one Sentinel on ``port``, which Sentinel itself writes to later."""
    return f"""\
port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor {master_name} 127.0.0.1 {master_port} {quorum}
sentinel down-after-milliseconds {master_name} {round(1000 * down_after)}
sentinel failover-timeout {master_name} {round(1000 * failover_timeout)}
"""


def knows(port: int, master_name: str, replicas: int, others: int) -> bool:
    """Whether the Sentinel on ``port`` knows that many replicas, and other Sentinels."""
    with contextlib.closing(_client(port)) as client, contextlib.suppress(redis.RedisError):
        master = client.sentinel_master(master_name)
        return bool(
            master["num-slaves"] == replicas
            and master["num-other-sentinels"] == others
            and all(not each["is_disconnected"] for each in client.sentinel_slaves(master_name))
        )
    return False


def _client(port: int) -> redis.Redis:
    return redis.Redis(port=port, socket_timeout=5, decode_responses=True)
