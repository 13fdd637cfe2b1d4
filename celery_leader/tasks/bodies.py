"""The leader-only bodies that run here, and the term that each of them began with.

Guaranteed: in every pool, a body and all that it calls find it from its first line to its
last, and nobody finds it afterwards. Not guaranteed: anything in a thread that
the body starts.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Body:
    """One run of a leader-only body.

    Args:
        owner: whose elections its election is one of.
        election: the election whose leader runs it.
        term: with which it began; ``None`` where it was run without being led.
    """

    __slots__ = ("election", "owner", "runs", "term")

    def __init__(self, owner: object, election: str, term: int | None) -> None:
        self.owner = owner
        self.election = election
        self.term = term
        self.runs = True

    def run(self, run: Callable[[], T]) -> T:
        """What ``run`` returns, which finds this body while it runs."""
        token = _bodies.set((*_bodies.get(), self))
        try:
            return run()
        finally:
            # Resetting is not enough: a greenlet that the body started has a copy of the context.
            self.runs = False
            _bodies.reset(token)


#: Of this thread or greenlet, the outermost first.
_bodies: contextvars.ContextVar[tuple[Body, ...]] = contextvars.ContextVar("bodies", default=())


def running_body(owner: object, election: str) -> Body | None:
    """The leader-only body of ``election`` that runs here; of several, the outermost."""
    for body in _bodies.get():
        if body.election == election and body.owner is owner and body.runs:
            return body
    return None
