"""Leader election for Celery over the Redis that is already the broker.

Not promised: that a task body still running when its worker loses the lead did not
overlap with its successor's. No system with pauses and partitions can promise that;
the body gets ``current_term()`` to fence its writes and ``check_leader()`` to stop.

Everything else, with the promises that do hold, is in the README.
"""

from __future__ import annotations

from .app import Leader
from .errors import LeaderError, NotLeader, StoreUnavailable
from .install import install
from .leader_election import LeaderElection
from .skipped import TaskSkipped
from .tasks import LeaderTask, check_leader, current_term, is_leader, leader_only, leading

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
