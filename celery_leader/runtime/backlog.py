"""The leader queue of one election, as the worker of this process sees it; for metrics.

A scrape reads these numbers in its own thread, and no I/O happens there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backlog:
    """One leader queue.

    Attributes:
        node: the worker.
        in_flight: how many of its messages this worker has and is not done with.
        waiting: how many waited when this worker last counted them; ``None`` unless it leads.
    """

    node: str
    in_flight: Callable[[], int]
    waiting: Callable[[], int | None]
