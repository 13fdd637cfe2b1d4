"""Private names of Celery's worker. Importing this module imports the worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import attribute, imported

#: A received message in a worker. Requests of leader-only tasks are a subclass.
Request: Any = imported(
    "celery.worker.request:Request", "hand over a message instead of running it"
)

#: Celery calls this method to give a request to the pool, in a subclass that Celery makes itself.
EXECUTE = "execute_using_pool"

#: Celery calls this method when a body has ended, in that subclass.
ON_SUCCESS = "on_success"

#: Tells Celery that a request is over.
task_ready: Callable[[Any], None] = imported(
    "celery.worker.state:task_ready", "end a request that does not run"
)

#: Reads a message of Celery's first protocol.
hybrid_to_proto2: Callable[..., Any] = imported(
    "celery.worker.strategy:hybrid_to_proto2", "read a message of Celery's first protocol"
)

#: Weak references to the requests that run.
active_requests: Any = imported(
    "celery.worker.state:active_requests", "know which leader-only bodies run"
)

#: What a worker says of itself in its events.
SOFTWARE_INFO: Any = imported("celery.worker.state:SOFTWARE_INFO", "send a worker's last event")

#: The pool that runs tasks in the thread of the worker itself.
SoloPool: Any = imported("celery.concurrency.solo:TaskPool", "know a worker that runs tasks itself")

attribute(Request, EXECUTE, "ask once more before a request is given to the pool")
attribute(Request, ON_SUCCESS, "know that a body has ended")


def is_in_pool(request: Any) -> bool:
    """Whether ``request`` was given to the pool."""
    result = attribute(request, "_apply_result", "know whether a request was given to the pool")
    return result is not None


def forgets_requests(pool: Any) -> bool:
    """Whether ``pool`` drops the requests it has not begun when the worker connects again.

    Only the pool of forked processes does; it has a ``flush`` of its own.
    """
    return "flush" in vars(pool)


def keep_running_jobs(pool: Any) -> None:
    """Have ``pool`` hear of the end of its running bodies also when the worker connects again.

    The pool of forked processes of Celery 5.5 and 5.6 forgets them then. Their requests count as
    running for ever, and what they acknowledge late is never acknowledged.
    """
    if not forgets_requests(pool) or isinstance(pool.flush, _Flush):
        return
    jobs = attribute(pool._pool, "_cache", "know the bodies that run in the pool")
    pool.flush = _Flush(pool.flush, jobs)


class _Flush:
    """Drops the jobs of a pool that have not begun, and those only."""

    def __init__(self, flush: Callable[[], None], jobs: dict[int, Any]) -> None:
        self._flush = flush
        self._jobs = jobs

    def __call__(self) -> None:
        running = {number: job for number, job in self._jobs.items() if job.accepted()}
        self._flush()
        for number, job in running.items():
            self._jobs.setdefault(number, job)


def context_of(request: Any) -> Any:
    """The context of the task that ``request`` is for, as result backends and signals take it."""
    return attribute(request, "_context", "store the result of a task that is skipped")


def keep_unknown(c: Any, handle: Callable[[Callable[[], Any], str, Any], Any]) -> None:
    """Have ``handle`` called for each message of an unknown task.

    Its arguments are Celery's own handler, which discards the message, the name of the task, and
    the message. Celery's consumer has no signal at which that can be prevented.
    """
    why = "keep a leader-only task that this worker does not know"
    stock = attribute(type(c), "on_unknown_task", why)

    def on_unknown_task(body: Any, message: Any, exc: Exception) -> Any:
        return handle(lambda: stock(c, body, message, exc), str(exc.args[0]), message)

    c.on_unknown_task = on_unknown_task
