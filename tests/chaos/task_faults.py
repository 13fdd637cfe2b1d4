"""What goes wrong for workers, in an order drawn from a seed, and how it is brought about."""

from __future__ import annotations

import signal
import time
from typing import Any

import redis

from tests.chaos.accounts import Frozen
from tests.chaos.faults import Fault
from tests.chaos.task_app import RECORD
from tests.chaos.workers import Worker, Workers

_CANDIDATES = "celery-leader:celery:candidates:worker"
_RECOVERY_PATIENCE = 40.0

KINDS = (
    "leader SIGTERM",
    "leader SIGKILL",
    "leader SIGKILL, its pool lives on",
    "leader's pool process SIGKILL",
    "leader SIGSTOP",
    "leader SIGSTOP, its pool goes on",
    "connections reset",
    "connections refused",
    "connections silent",
    "connections forgotten",
)


class Scene:
    """Where faults are brought about.

    Args:
        client: of the Redis of all.
        workers: who runs tasks.
        lease: theirs, in seconds.
    """

    def __init__(self, client: redis.Redis, workers: Workers, lease: float) -> None:
        self._client = client
        self._workers = workers
        self._lease = lease
        #: Who was stopped whole, and when.
        self.frozen: list[Frozen] = []
        self._acts: dict[str, Any] = {
            "leader SIGTERM": lambda fault: self._leader().tell(signal.SIGTERM),
            "leader SIGKILL": lambda fault: self._leader().tell_all(signal.SIGKILL),
            "leader SIGKILL, its pool lives on": lambda f: self._leader().tell(signal.SIGKILL),
            "leader's pool process SIGKILL": lambda fault: self._leader().kill_one_child(),
            "leader SIGSTOP": self._leader_frozen,
            "leader SIGSTOP, its pool goes on": self._leader_stopped,
            "connections reset": self._connections_reset,
            "connections refused": self._connections_refused,
            "connections silent": self._connections_silent,
            "connections forgotten": self._connections_forgotten,
        }

    def bring_about(self, fault: Fault) -> None:
        """Have ``fault`` happen; return when its cause is gone."""
        self._acts[fault.kind](fault)

    def recover(self) -> bool:
        """Wait until one of at least two workers leads that runs."""
        deadline = time.monotonic() + _RECOVERY_PATIENCE
        while time.monotonic() < deadline:
            leader = self._holder()
            there = set(self._client.zrange(_CANDIDATES, 0, -1))
            settled = [w for w in self._workers.all if w.settled and w.node in there]
            if leader in settled and len(settled) > 1:
                return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        """Heal what is broken."""
        for worker in self._workers.all:
            worker.proxy.restore()
            worker.tell_all(signal.SIGCONT)

    # -- processes ---------------------------------------------------------------

    def _leader_frozen(self, fault: Fault) -> None:
        leader = self._leader()
        node, begins = leader.node, time.time_ns() // 1000
        leader.tell_all(signal.SIGSTOP)
        time.sleep(self._longer_than_lease(fault))
        leader.tell_all(signal.SIGCONT)
        self.frozen.append(Frozen(node, begins, time.time_ns() // 1000))

    def _leader_stopped(self, fault: Fault) -> None:
        leader = self._leader()
        leader.tell(signal.SIGSTOP)
        time.sleep(self._longer_than_lease(fault))
        leader.tell(signal.SIGCONT)

    # -- connections -----------------------------------------------------------------

    def _connections_reset(self, fault: Fault) -> None:
        worker = self._hit(fault)
        for _ in range(fault.count):
            worker.proxy.reset()
            time.sleep(0.3 * fault.share)

    def _connections_refused(self, fault: Fault) -> None:
        worker = self._hit(fault)
        worker.proxy.refuse()
        time.sleep(self._about_a_lease(fault))
        worker.proxy.restore()

    def _connections_silent(self, fault: Fault) -> None:
        worker = self._hit(fault)
        worker.proxy.stall()
        time.sleep(self._about_a_lease(fault))
        worker.proxy.restore()

    def _connections_forgotten(self, fault: Fault) -> None:
        self._hit(fault).proxy.forget()
        time.sleep(self._about_a_lease(fault))

    # -- who is hit and for how long -----------------------------------------------------

    def _longer_than_lease(self, fault: Fault) -> float:
        return self._lease + 0.3 + 1.7 * fault.share

    def _about_a_lease(self, fault: Fault) -> float:
        return 0.1 + (self._lease + 1.5) * fault.share

    def _hit(self, fault: Fault) -> Worker:
        leader = self._leader()
        if fault.on_leader:
            return leader
        followers = [worker for worker in self._workers.all if worker is not leader]
        return followers[fault.count % len(followers)]

    def _leader(self) -> Worker:
        return self._holder() or self._workers.all[0]

    def _holder(self) -> Worker | None:
        holder, state = self._client.hmget(RECORD, "holder", "state")
        return self._workers.of_node(holder) if holder and state == "held" else None
