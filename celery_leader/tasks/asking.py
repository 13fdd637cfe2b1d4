"""Questions that task and app code asks: do I lead, and with which term? No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from celery_leader.compat.celery import current_app
from celery_leader.errors import NotLeader
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.settings import WORKER

from .bodies import running_body, term_here


def current_term(election: str = WORKER) -> int | None:
    """The term with which this process leads ``election`` now, or ``None``; no I/O.

    Store it with each write, and refuse a write with a lower term. Inside a leader-only body of
    ``election`` the answer is the term that the body began with, and ``None`` once that term
    is over, even if this process has won a later one.

    Raises:
        LeaderError: the current app knows no such election.
    """
    return term_here(runtime_of(current_app()), election)


def is_leader(election: str = WORKER) -> bool:
    """Whether this process leads ``election`` now; no I/O.

    A pool process leads when its worker leads. Inside a leader-only body of ``election`` the
    answer is whether the term that the body began with still lasts.

    Raises:
        LeaderError: the current app knows no such election.
    """
    return current_term(election) is not None


def check_leader(election: str = WORKER) -> int:
    """The term with which this process leads ``election`` now; no I/O.

    Raises:
        NotLeader: this process does not lead, or the term that the current leader-only body
            began with is over.
        LeaderError: the current app knows no such election.
    """
    term = current_term(election)
    if term is None:
        raise NotLeader(_why_not(election))
    return term


def _why_not(election: str) -> str:
    runtime = runtime_of(current_app())
    body, term = running_body(runtime, election), runtime.beliefs.term(election)
    if body is None or body.term is None or term is None:
        return f"this process does not lead {election!r}"
    return (
        f"this process lost the lead of {election!r} with term {body.term}, which this body began"
        f" with, and won it again with term {term}"
    )


@contextlib.contextmanager
def leading(election: str = WORKER) -> Iterator[int]:
    """Run a block, or with ``@leading()`` a plain function, only where ``election`` is led.

    ::

        with leading() as term:
            write(rows, term=term)

    The question is asked once, at the start. The block is not stopped when leadership is lost:
    call ``check_leader()`` in it, and fence its writes by the term.

    Raises:
        NotLeader: this process does not lead. Nothing was run.
        LeaderError: the current app knows no such election.
    """
    yield check_leader(election)
