"""Leader election for Celery over the Redis that is already the broker.

Not promised: that a task body still running when its worker loses the lead did not
overlap with its successor's. No system with pauses and partitions can promise that;
the body gets ``current_term()`` to fence its writes and ``check_leader()`` to stop.

Everything else, with the promises that do hold, is in the README.
"""

from __future__ import annotations

from .errors import LeaderError, NotLeader, StoreUnavailable
from .install import install
from .runtime.leader_election import Leader, LeaderElection
from .tasks.asking import check_leader, current_term, is_leader, leading
from .tasks.leader_only import LeaderTask, leader_only
from .tasks.skipped import TaskSkipped

__all__ = (
    "Leader",
    "LeaderElection",
    "LeaderError",
    "LeaderTask",
    "NotLeader",
    "StoreUnavailable",
    "TaskSkipped",
    "check_leader",
    "current_term",
    "install",
    "is_leader",
    "leader_only",
    "leading",
)
