"""Whether nodes are well, judged by when Redis last heard of them.

Guaranteed: a node that is well had an election thread that was in contact with Redis within
``patience``; whether it leads does not matter. A node name that ends in a process id of
this host is not well without that process. Not guaranteed: anything else about
the node, such as that a worker takes in tasks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from celery_leader.core.timing import Timing
from celery_leader.store.register import Candidate


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether one node is well, and why that is thought."""

    node: str
    well: bool
    why: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which nodes are asked for.

    Attributes:
        host: this host's name, the only one whose process ids mean something here.
        node: ``name@host``, which names ``name@host:pid`` too; ``None`` for every node of
            ``host``.
    """

    host: str
    node: str | None = None

    def __str__(self) -> str:
        return self.node or f"any node of {self.host}"

    def names(self, node: str) -> bool:
        """Whether ``node`` is one of them."""
        if self.node is None:
            return _host_of(node) == self.host
        return node == self.node or node.startswith(f"{self.node}:")

    def pid(self, node: str) -> int | None:
        """The process of this host that ``node`` names, if it does."""
        number = node.rpartition(":")[2].partition(".")[0]
        here = ":" in node and _host_of(node) == self.host
        return int(number) if here and number.isdecimal() else None


def patience(timing: Timing) -> float:
    """How long, in seconds, a candidate that is well may be silent.

    A leader is heard of at each renewal, a follower when the lease it saw can have run out:
    once a lease at least.
    """
    return 1.5 * timing.lease_duration


def last_contacts(candidates: Iterable[Candidate]) -> dict[str, float]:
    """How many seconds ago each node was heard of, in whichever election."""
    # One thread keeps all elections of a process: a sign of one is a sign of life of all.
    seen: dict[str, float] = {}
    for candidate in candidates:
        seen[candidate.node] = min(candidate.seen_ago, seen.get(candidate.node, float("inf")))
    return seen


def examine(
    wanted: Wanted,
    seen: Mapping[str, float],
    *,
    patience: float,
    runs: Callable[[int], bool],
) -> list[Finding]:
    """What there is to say of each wanted node that was heard of; nothing if none was.

    A name whose process has ended says nothing of one that came after it on the same
    host, so it counts only where there is no other.
    """
    nodes = sorted(filter(wanted.names, seen))
    ended = {node: pid for node in nodes if (pid := wanted.pid(node)) and not runs(pid)}
    living = [node for node in nodes if node not in ended]
    if not living:
        return [Finding(node, False, f"process {pid} has ended") for node, pid in ended.items()]
    return [_judged(node, seen[node], patience) for node in living]


def _judged(node: str, seen_ago: float, patience: float) -> Finding:
    if seen_ago <= patience:
        return Finding(node, True, f"in contact with Redis {seen_ago:.1f} s ago")
    return Finding(
        node,
        False,
        f"last in contact with Redis {seen_ago:.1f} s ago, more than {patience:g} s:"
        " its election thread is stuck, cut off or gone",
    )


def process_runs(pid: int) -> bool:
    """Whether there is a process ``pid`` on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # another user's, or no number that could be asked for
    return True


def _host_of(node: str) -> str:
    return node.partition("@")[2].partition(":")[0]
