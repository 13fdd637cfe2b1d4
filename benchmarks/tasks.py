"""What the benchmark's workers run beside the tasks of the fleet tests."""

from __future__ import annotations

import functools
import timeit
from collections.abc import Callable
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
    return _more(before_start, stock, calls)


@shared_task(name="bench.body", bind=True)
@leader_only
def cost_of_body(self: Any) -> float:
    """Nanoseconds that it takes to know a leader-only body by its term, the best of five."""
    return _more(self.app.tasks["bench.nothing"].run, _nothing, 20_000)


def _more(act: Callable[[], object], plain: Callable[[], object], calls: int) -> float:
    longer, shorter = (min(timeit.repeat(each, number=calls, repeat=5)) for each in (act, plain))
    return (longer - shorter) / calls * 1e9


def _nothing() -> None:
    pass


nothing = leader_only(shared_task(name="bench.nothing")(_nothing))


@shared_task(name="bench.plain")
def plain() -> None:
    """Does nothing, and is not leader-only."""
