"""What the benchmark's workers run beside the tasks of the fleet tests."""

from __future__ import annotations

import timeit

from celery import shared_task

from celery_leader import is_leader


@shared_task(name="bench.is_leader")
def cost_of_is_leader() -> dict[str, float | bool]:
    """Nanoseconds per ``is_leader()`` in this pool process, the best of five."""
    calls = 100_000
    seconds = min(timeit.repeat(is_leader, number=calls, repeat=5))
    return {"ns": seconds / calls * 1e9, "leads": is_leader()}
