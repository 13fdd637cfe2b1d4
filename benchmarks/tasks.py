"""What the benchmark's workers run beside the tasks of the fleet tests."""

from __future__ import annotations

import functools
import timeit
from typing import Any

from celery import Task, shared_task

from celery_leader import is_leader, leader_only


@shared_task(name="bench.is_leader")
def cost_of_is_leader() -> dict[str, float | bool]:
    """Nanoseconds per ``is_leader()`` in this pool process, the best of five."""
    calls = 100_000
    seconds = min(timeit.repeat(is_leader, number=calls, repeat=5))
    return {"ns": seconds / calls * 1e9, "leads": is_leader()}


@shared_task(name="bench.guard", bind=True)
@leader_only
def cost_of_guard(self: Any) -> float:
    """Nanoseconds that the check before a leader-only body takes, the best of five."""
    calls = 20_000
    before_start = functools.partial(self.before_start, self.request.id, (), {})
    stock = functools.partial(Task.before_start, self, self.request.id, (), {})
    guarded, plain = (
        min(timeit.repeat(act, number=calls, repeat=5)) for act in (before_start, stock)
    )
    return (guarded - plain) / calls * 1e9
