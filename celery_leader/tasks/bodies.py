"""The leader-only bodies that run here, and the term that each of them began with.

Guaranteed, in every pool: ``running_body`` finds a body from its first line to its last, in the
body and in all that it calls. Afterwards nobody finds it. Not guaranteed: anything in a thread
that the body starts.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from celery_leader.errors import LeaderError
from celery_leader.runtime.app_runtime import AppRuntime, runtime_of

from .marks import options_for

T = TypeVar("T")


class Body:
    """One run of a leader-only body.

    Args:
        runtime: of the task's app; another app may have an election of the same name.
        election: the election whose leader runs the body.
        term: the term it began with; ``None`` where this process did not lead.
    """

    __slots__ = ("election", "runs", "runtime", "term")

    def __init__(self, runtime: AppRuntime, election: str, term: int | None) -> None:
        self.runtime = runtime
        self.election = election
        self.term = term
        self.runs = True

    def run(self, run: Callable[[], T]) -> T:
        """Call ``run``, and let ``running_body`` find this body until it returns."""
        token = _bodies.set((*_bodies.get(), self))
        try:
            return run()
        finally:
            # Resetting is not enough: a greenlet that the body started has a copy of the context.
            self.runs = False
            _bodies.reset(token)


#: The bodies of this thread or greenlet, the outermost first.
_bodies: contextvars.ContextVar[tuple[Body, ...]] = contextvars.ContextVar("bodies", default=())


def running_body(runtime: AppRuntime, election: str) -> Body | None:
    """The leader-only body of ``election`` that runs here; of several, the outermost."""
    for body in _bodies.get():
        if body.election == election and body.runtime is runtime and body.runs:
            return body
    return None


def term_here(runtime: AppRuntime, election: str) -> int | None:
    """The term with which this process leads ``election`` now, or ``None``.

    Inside a body of ``election``: the term that the body began with, and ``None`` once that term
    is over.

    Raises:
        LeaderError: the app knows no such election.
    """
    term = runtime.beliefs.term(election)
    body = running_body(runtime, election)
    return term if body is None or body.term == term else None


def as_body(task: Any, run: Callable[..., T]) -> Callable[..., T]:
    """Wrap ``run``, so that it is a known ``Body``, with its term, while it runs."""

    @functools.wraps(run)
    def body(*args: Any, **kwargs: Any) -> T:
        options = options_for(task, args, kwargs)
        if options is None:  # a map of an ordinary task
            return run(*args, **kwargs)
        runtime = runtime_of(task.app)
        try:
            term = term_here(runtime, options.election)
        except LeaderError:  # called where no worker could start
            return run(*args, **kwargs)
        return Body(runtime, options.election, term).run(lambda: run(*args, **kwargs))

    return body
