"""Whether nodes are well, judged by their last contact with Redis.

Guaranteed: the election thread of a well node was in contact with Redis within ``patience``,
leading or not. If a node's name holds a process id of this host, it is well only while that
process runs. Not guaranteed: anything else about the node, such as that a worker takes in tasks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from celery_leader.core.timing import Timing
from celery_leader.store.register import Candidate


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Whether one node is well, and why."""

    node: str
    well: bool
    why: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """The nodes that a health check asks for.

    Attributes:
        host: the name of this host, whose process ids can be looked up.
        node: ``name@host``, which also means ``name@host:pid``; ``None`` for every node of
            ``host``.
    """

    host: str
    node: str | None = None

    def __str__(self) -> str:
        return self.node or f"any node of {self.host}"

    def means(self, node: str) -> bool:
        """Whether ``node`` is one of them."""
        if self.node is None:
            return _host_of(node) == self.host
        return node == self.node or node.startswith(f"{self.node}:")

    def pid(self, node: str) -> int | None:
        """The process of this host in the name ``node``, if there is one."""
        number = node.rpartition(":")[2].partition(".")[0]
        here = ":" in node and _host_of(node) == self.host
        return int(number) if here and number.isdecimal() else None


def patience(timing: Timing) -> float:
    """How long, in seconds, a living candidate may be silent.

    A leader is in contact at each renewal. A follower is in contact when the lease that it saw can
    have run out, so at least once a lease.
    """
    return 1.5 * timing.lease_duration


def last_contacts(candidates: Iterable[Candidate]) -> dict[str, float]:
    """How many seconds ago each node was in contact, in any election."""
    # One thread serves all elections of a process, so contact in one is a sign of life in all.
    seen: dict[str, float] = {}
    for candidate in candidates:
        seen[candidate.node] = min(candidate.seen_ago, seen.get(candidate.node, float("inf")))
    return seen


def health_of(
    wanted: Wanted,
    seen: Mapping[str, float],
    *,
    patience: float,
    runs: Callable[[int], bool],
) -> list[NodeHealth]:
    """The health of each wanted node in ``seen``, the last contacts; empty if there is none.

    A node whose process has ended counts only if no wanted node lives: another process may have
    taken its place.
    """
    nodes = sorted(filter(wanted.means, seen))
    ended = {node: pid for node in nodes if (pid := wanted.pid(node)) and not runs(pid)}
    living = [node for node in nodes if node not in ended]
    if not living:
        return [NodeHealth(node, False, f"process {pid} has ended") for node, pid in ended.items()]
    return [_judged(node, seen[node], patience) for node in living]


def process_runs(pid: int) -> bool:
    """Whether there is a process ``pid`` on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # another user's process, or too large a number to ask for
    return True


def _judged(node: str, seen_ago: float, patience: float) -> NodeHealth:
    if seen_ago <= patience:
        return NodeHealth(node, True, f"in contact with Redis {seen_ago:.1f} s ago")
    return NodeHealth(
        node,
        False,
        f"last in contact with Redis {seen_ago:.1f} s ago, more than {patience:g} s:"
        " its election thread is stuck, cut off or gone",
    )


def _host_of(node: str) -> str:
    return node.partition("@")[2].partition(":")[0]
