"""One contender's beats over a Redis of their own, each behind its own proxy."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers import app
from benchmarks.peers.contenders import LEASE, Contender
from benchmarks.peers.judge import Message
from tests.chaos.app import ENTRY
from tests.chaos.drainer import Drainer, sender
from tests.chaos.supervised import Supervised, Supervisor
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import wait_until

PATIENCE = 60.0  # seconds; used up by a contender that does not come back
_DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
_SETTLES = 0.5  # seconds from a follower's first connection until it surely waits for the lease


class Node(Supervised):
    """One place for one contender's process."""

    #: While true it is not started again: its machine is gone.
    gone = False

    def __init__(
        self,
        number: int,
        proxy: Proxy,
        contender: Contender,
        intervals: dict[str, float],
        directory: Path,
    ) -> None:
        super().__init__(f"{contender.distribution}-{number}", proxy, directory)
        self._contender = contender
        self._intervals = intervals
        self._file = str(directory / f"{self.name}.schedule")
        self._accepted_before = 0
        self._started_at = 0.0
        self._groups: set[int] = set()

    def command(self) -> list[str]:
        """What to run, program first."""
        return list(self._contender.command(self._file))

    def environment(self) -> dict[str, str]:
        """What to add to the environment."""
        url = self.proxy.url
        config: dict[str, Any] = {
            "broker": url,
            "lease": LEASE,
            "settings": {
                "broker_connection_retry_on_startup": True,
                **self._contender.settings(url),
            },
            "intervals": self._intervals,
            "install": self._contender.install,
        }
        return {app.VARIABLE: json.dumps(config), **self._contender.variables(url)}

    def start(self) -> None:
        """Run it."""
        self._accepted_before = self.proxy.accepted
        self._started_at = time.monotonic()
        super().start()
        self._groups.add(self.pid)

    def attend(self) -> tuple[str, bool] | None:
        """Start it again when it has ended, unless its machine is gone."""
        return None if self.gone else super().attend()

    @property
    def takes_part(self) -> bool:
        """Whether it has been in touch with Redis for a moment."""
        touched = self.proxy.accepted > self._accepted_before
        return self.settled and touched and time.monotonic() > self._started_at + _SETTLES

    def end(self) -> None:
        """Kill it for good, and what it has left behind."""
        super().end()
        self.bury()

    def bury(self) -> None:
        """Kill what processes that have ended have left behind."""
        for group in self._groups - {self.pid}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self._groups &= {self.pid}

    def owns(self, pid: int) -> bool:
        """Whether ``pid`` is this process or one it started."""
        try:
            return self.pid != 0 and os.getpgid(pid) == self.pid
        except ProcessLookupError:
            return False

    def tree(self) -> list[psutil.Process]:
        """The process and all it started."""
        try:
            main = psutil.Process(self.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class Queue(Drainer):
    """Everything that arrived in the queue, with the two moments it came between."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.messages: list[Message] = []
        self._looked_at = 0

    def _arrived(self, messages: list[bytes], at: int) -> None:
        for raw in messages:
            headers = json.loads(raw)["headers"]
            message = Message(headers[ENTRY], sender(headers), self._looked_at or at, at)
            self.messages.append(message)
        self._looked_at = at


class Pair:
    """A contender at work, from ``with`` to its end."""

    def __init__(self, contender: Contender, intervals: dict[str, float], directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.contender = contender
        self.intervals = intervals
        self._directory = directory
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Pair:
        enter = self._open.enter_context
        self.server = enter(RedisServer(_DURABLE, port=free_port()))
        self.queue = enter(Queue(self.server.port))

        def node(number: int, proxy: Proxy) -> Node:
            return Node(number, proxy, self.contender, self.intervals, self._directory)

        self._supervisor = enter(Supervisor(self.contender.nodes, self.server.port, node))
        self.nodes = self._supervisor.all
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    @property
    def deaths(self) -> int:
        """How often a process has ended by itself, or not although it was told to."""
        return len(self._supervisor.deaths)

    def settle(self) -> bool:
        """Wait until each node takes part and each entry was sent since now."""
        since = now()

        def settled() -> bool:
            if self.queue.error is not None:
                raise self.queue.error
            entries = {m.entry for m in self._latest() if m.after >= since}
            return entries >= self.intervals.keys() and all(n.takes_part for n in self.nodes)

        with contextlib.suppress(AssertionError):
            return wait_until(settled, PATIENCE, "each entry")
        return False

    def leader(self) -> Node:
        """Whose process sent the latest message."""
        for message in reversed(self._latest()):
            for node in self.nodes:
                if node.owns(message.pid):
                    return node
        return self.nodes[0]

    def succeeded(self, pid: int, since: int) -> float | None:
        """Wait until a process outside the group ``pid`` sends.

        Returns:
            The seconds from ``since`` to its first message; ``None`` if none came.
        """

        def first() -> Message | None:
            later = [message for message in self._latest() if message.by > since]
            return next(
                (m for m in later if any(n.pid != pid and n.owns(m.pid) for n in self.nodes)), None
            )

        with contextlib.suppress(AssertionError):
            message = wait_until(first, PATIENCE, "another to send")
            assert message is not None
            return (message.by - since) / 1e6
        return None

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for ``condition``; whether it came."""
        with contextlib.suppress(AssertionError):
            return wait_until(condition, PATIENCE)
        return False

    def heal(self) -> None:
        """Undo every fault."""
        for node in self.nodes:
            node.gone = False
            node.proxy.restore()
            node.tell_all(signal.SIGCONT)

    def bury(self) -> None:
        """Kill what ended processes have left behind."""
        for node in self.nodes:
            node.bury()

    def _latest(self) -> list[Message]:
        return self.queue.messages[-2000:]


def now() -> int:
    """µs by this machine's clock, which is also that of Redis."""
    return time.time_ns() // 1000
