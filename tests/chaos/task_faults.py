"""What goes wrong for workers, in an order drawn from a seed, and how it is brought about."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import redis

from tests.chaos.accounts import Frozen, Killed
from tests.chaos.faults import Fault
from tests.chaos.moments import present
from tests.chaos.task_app import RECORD
from tests.chaos.workers import Worker, Workers

_CANDIDATES = "celery-leader:celery:candidates:worker"
_MAILBOXES = "_kombu.binding.celery.pidbox"
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


class Electing:
    """Workers that elect a leader: it is hit."""

    def __init__(self, client: redis.Redis, workers: Workers) -> None:
        self._client = client
        self._workers = workers

    def leader(self) -> Worker | None:
        """Who leads."""
        holder, state = self._client.hmget(RECORD, "holder", "state")
        return self._workers.of_node(holder) if holder and state == "held" else None

    def there(self) -> set[str]:
        """The nodes that have begun to work."""
        return set(self._client.zrange(_CANDIDATES, 0, -1))


class Plain:
    """Workers that know of no election: one of those that work is hit, by chance."""

    def __init__(self, client: redis.Redis, workers: Workers, seed: int) -> None:
        self._client = client
        self._workers = workers
        self._chance = random.Random(seed)

    def leader(self) -> Worker | None:
        """Who is hit in the leader's place."""
        there = self.there()
        working = [w for w in self._workers.all if w.settled and w.node in there]
        return self._chance.choice(working) if working else None

    def there(self) -> set[str]:
        """The nodes that have begun to work: Celery gives each a mailbox then."""
        bound = self._client.smembers(_MAILBOXES)
        return {line.rsplit("\x16", 1)[-1].removesuffix(".celery.pidbox") for line in bound}


class Scene:
    """Where faults are brought about.

    Args:
        workers: who runs tasks.
        lease: theirs, in seconds.
        kind: whom to hit.
    """

    def __init__(self, workers: Workers, lease: float, kind: Electing | Plain) -> None:
        self._workers = workers
        self._kind = kind
        self._lease = lease
        #: Who was stopped whole, and when.
        self.frozen: list[Frozen] = []
        #: Whose pool process was killed, and when.
        self.killed: list[Killed] = []
        self._acts: dict[str, Any] = {
            "leader SIGTERM": lambda fault: self._leader().tell(signal.SIGTERM),
            "leader SIGKILL": lambda fault: self._leader().tell_all(signal.SIGKILL),
            "leader SIGKILL, its pool lives on": lambda f: self._leader().tell(signal.SIGKILL),
            "leader's pool process SIGKILL": self._pool_process_killed,
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
            leader = self._kind.leader()
            there = self._kind.there()
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

    def _pool_process_killed(self, fault: Fault) -> None:
        leader = self._leader()
        self.killed.append(Killed(leader.node, present()))
        leader.kill_one_child()

    def _leader_frozen(self, fault: Fault) -> None:
        leader = self._leader()
        node, begins = leader.node, present()
        leader.tell_all(signal.SIGSTOP)
        time.sleep(self._longer_than_lease(fault))
        leader.tell_all(signal.SIGCONT)
        self.frozen.append(Frozen(node, begins, present()))

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
        worker.proxy.turn_away()
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
        return self._kind.leader() or self._workers.all[0]
