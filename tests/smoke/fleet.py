"""What is done to a fleet of containers, and the verdict on what Redis recorded of it."""

from __future__ import annotations

import datetime
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import redis
from celery import Celery
from redis.exceptions import RedisError

from tests.smoke.components import LEASE, TICKS, LeaderBeat, LeaderWorker
from tests.support.waiting import wait_until

Node = LeaderWorker | LeaderBeat

PATIENCE = 180.0  # seconds; used up by a failure only
LEADER_QUEUE = "celery.leader"
ELECTIONS = ("worker", "beat")


class ContainerFleet:
    """Workers and beats in containers, and the Redis in which everything can be read.

    Args:
        client: to that Redis.
        app: sends tasks by name, as a process without the package does.
        network: the network that all of them are in.
        nodes: the workers and beats; a test may add to them.
    """

    def __init__(self, client: redis.Redis, app: Celery, network: Any, nodes: list[Node]) -> None:
        self.client = client
        self.app = app
        self.nodes = nodes
        self.harmed: list[Node] = []
        self._network = network
        self._sent: set[str] = set()

    # -- waiting -------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until every running node takes part and each election is led."""
        for node in self.nodes:
            if self.runs(node):
                self.takes_part(node)
        for election in ELECTIONS:
            self.leader(election)

    def leader(self, election: str, other_than: Iterable[Node] = ()) -> Node:
        """Wait until one of the nodes leads, and return it."""

        def leading() -> Node | None:
            record = self._ask("hgetall", _key("election", election)) or {}
            if record.get("state") != "held" or int(record["expires_at"]) <= self.now():
                return None
            named = [node for node in self.nodes if node.is_called(record["holder"])]
            return named[0] if named and named[0] not in other_than else None

        node = wait_until(leading, PATIENCE, f"a leader of {election}")
        assert node is not None
        return node

    def takes_part(self, node: Node, since: int = 0) -> None:
        """Wait until Redis has heard of ``node``, later than ``since`` on its own clock."""

        def heard() -> bool:
            contacts = self._ask("zrange", _key("candidates", node.election), 0, -1, "", True)
            return any(node.is_called(name) and at > since for name, at in contacts or ())

        wait_until(heard, PATIENCE, f"{node.name()} to take part in {node.election}")

    def is_well(self, node: Node) -> None:
        """Wait until the health check of ``node``'s container passes."""
        command = ["celery", "-A", "app", "leader", "healthcheck"]
        wait_until(
            lambda: node.container.exec_run(command)[0] == 0, PATIENCE, f"{node.name()} to be well"
        )

    def runs(self, node: Node) -> bool:
        """Whether its container does."""
        node.container.reload()
        return node.container.status == "running"

    def now(self) -> int:
        """Milliseconds, on the clock of Redis; 0 while it does not answer."""
        seconds, micros = self._ask("time") or (0, 0)
        return seconds * 1000 + micros // 1000

    def _ask(self, command: str, *arguments: Any) -> Any:
        try:
            return getattr(self.client, command)(*arguments)
        except RedisError:
            return None  # it is being restarted

    # -- sending -------------------------------------------------------------------

    def send(self, count: int = 1, seconds: float = 0.0, queue: str = LEADER_QUEUE) -> list[str]:
        """Send leader-only tasks; return their ids."""
        ids = [
            self.app.send_task("smoke.on_leader", (seconds,), queue=queue).id for _ in range(count)
        ]
        self._sent.update(ids)
        return ids

    def started(self, ids: Iterable[str], times: int = 1) -> None:
        """Wait until the bodies of ``ids`` have started, each so many ``times``."""
        wanted = set(ids)

        def enough() -> bool:
            counts = Counter(start["id"] for start in self.starts())
            return all(counts[each] >= times for each in wanted)

        wait_until(enough, PATIENCE, f"{len(wanted)} bodies to start, {times} x each")

    # -- what containers suffer -------------------------------------------------------

    def kill(self, node: Node) -> None:
        """End its processes at once."""
        self.harmed.append(node)
        node.container.kill("SIGKILL")

    def stop(self, node: Node) -> None:
        """Ask it to end, as ``docker stop`` does."""
        _raw(node).stop(timeout=30)
        node.container.reload()
        if node.container.attrs["State"]["ExitCode"]:
            # A warm shutdown of Celery's own can hang, and the engine then kills.
            assert node.election == "worker", node.logs()
            self.harmed.append(node)

    def start(self, node: Node) -> None:
        """Have a container that has ended go on."""
        _raw(node).start()

    def pause(self, node: Node) -> None:
        """Freeze it."""
        self.harmed.append(node)
        _raw(node).pause()

    def unpause(self, node: Node) -> None:
        """Have it go on."""
        _raw(node).unpause()

    def disconnect(self, node: Node) -> None:
        """Take it out of the network."""
        self.harmed.append(node)
        self._network.disconnect(_raw(node))

    def connect(self, node: Node) -> None:
        """Put it into the network again."""
        self._network.connect(_raw(node))

    # -- the verdict ----------------------------------------------------------------

    def starts(self) -> list[dict[str, str]]:
        """Every start of a body, with who led by Redis' record at that moment."""
        return [start for _, start in self._ask("xrange", "smoke:starts") or ()]

    def judge(self) -> None:
        """Nothing was lost, nothing was doubled, and nobody led beside another."""
        self._judge_elections()
        self._judge_starts()
        self._judge_ticks()

    def _judge_elections(self) -> None:
        for election in ELECTIONS:
            lines = [line for _, line in self.client.xrange(_key("history", election))]
            terms = [int(line["term"]) for line in lines if line["kind"] == "elected"]
            assert terms, f"nobody led {election}"
            assert all(a < b for a, b in itertools.pairwise(terms)), (election, lines)

    def _judge_starts(self) -> None:
        starts = self.starts()
        harmed = {start["node"] for start in starts if self._was_harmed(start["node"])}
        for start in starts:
            if int(start["term"]):
                assert (start["node"], start["term"]) == (start["holder"], start["held_term"]), (
                    f"a body believed that its worker led while another did: {start}"
                )
            else:
                assert start["node"] in harmed, f"a body started on a follower: {start}"
        assert self._sent == {start["id"] for start in starts}
        for task_id, count in Counter(start["id"] for start in starts).items():
            nodes = [start["node"] for start in starts if start["id"] == task_id]
            # What a worker had in hand comes back when it is not heard of: at least once.
            assert count == 1 or harmed & set(nodes), f"{task_id} started twice, on {nodes}"

    def _was_harmed(self, name: str) -> bool:
        return any(node.is_called(name) for node in self.harmed)

    def _judge_ticks(self) -> None:
        wait_until(lambda: self.client.llen(TICKS) > LEASE, PATIENCE, "ticks")
        messages = [json.loads(text)["headers"] for text in self.client.lrange(TICKS, 0, -1)]
        messages.reverse()
        due = [datetime.datetime.fromisoformat(each["leader_tick"]) for each in messages]
        steps = {(after - before).total_seconds() for before, after in itertools.pairwise(due)}
        assert steps == {1.0}, f"a tick was sent twice, late or not at all: {due}"
        terms = [each["leader_term"] for each in messages]
        assert terms == sorted(terms), f"a deposed beat has sent: {terms}"


def _raw(node: Node) -> Any:
    return node.container._container


def _key(kind: str, election: str) -> str:
    return f"celery-leader:celery:{kind}:{election}"
