"""What each contender costs while nearly nothing is due: memory, CPU, commands, connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.contenders import Contender
from benchmarks.peers.pair import Node, Pair

_PULSE = {"pulse": 2.0}  # one entry, so that somebody is seen to lead
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one node: private memory in MiB, the share of one CPU, connections to Redis."""

    memory: float
    cpu: float
    connections: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Of one contender: its leader, its standby if it has one, commands a second of both."""

    contender: Contender
    leader: Cost
    standby: Cost | None
    commands: float


def measure(contenders: tuple[Contender, ...], seconds: float, directory: Path) -> list[Idle]:
    """All contenders side by side, for so long."""
    with contextlib.ExitStack() as stack:
        pairs = []
        for contender in contenders:  # one after the other: starting is the costly part
            pair = Pair(contender, _PULSE, directory / f"idle-{contender.distribution}")
            pairs.append(stack.enter_context(pair))
            pair.settle()
        for pair in pairs:
            pair.settle()
        time.sleep(5)
        costs = [_Watch(pair) for pair in pairs]
        for cost in costs:
            cost.thread.start()
        time.sleep(seconds)
        return [cost.end() for cost in costs]


class _Watch:
    """One pair from its making to ``end``."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._leader = pair.leader()
        self._standby = next((node for node in pair.nodes if node is not self._leader), None)
        pair.queue.__exit__()  # it reads from Redis all the time
        self._begins = time.monotonic()
        self._cpu = {node: _cpu(node) for node in pair.nodes}
        self._commands = 0
        self.thread = threading.Thread(target=self._count)
        self._over = threading.Event()

    def _count(self) -> None:
        self._commands = commands(self._pair.server.port, self._over)

    def end(self) -> Idle:
        self._over.set()
        self.thread.join()
        lasted = time.monotonic() - self._begins
        costs = {node: self._cost(node, lasted) for node in self._pair.nodes}
        standby = costs[self._standby] if self._standby is not None else None
        return Idle(self._pair.contender, costs[self._leader], standby, self._commands / lasted)

    def _cost(self, node: Node, lasted: float) -> Cost:
        tree = node.tree()
        return Cost(
            memory=sum(process.memory_full_info().uss for process in tree) / _MIB,
            cpu=(_cpu(node) - self._cpu[node]) / lasted,
            connections=sum(
                each.status == psutil.CONN_ESTABLISHED
                for process in tree
                for each in process.net_connections("tcp")
            ),
        )


def _cpu(node: Node) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in node.tree())


def commands(port: int, over: threading.Event) -> int:
    """How many commands clients send to the Redis on ``port`` until ``over``."""
    count, rest = 0, b""
    with socket.create_connection(("127.0.0.1", port)) as monitor:
        monitor.settimeout(0.2)
        monitor.sendall(b"MONITOR\r\n")
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                rest += monitor.recv(1 << 16)
                *lines, rest = rest.split(b"\r\n")
                # What a script does inside Redis is no command of a client.
                count += sum(b" lua] " not in line for line in lines)
    return count - 1  # the answer to MONITOR itself
