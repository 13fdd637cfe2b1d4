"""For unit tests of code that asks who leads: this process leads or follows, as the test says.

::

    def test_the_report_stops_when_the_lead_is_lost(monkeypatch):
        with leading_as(app, term=7) as lead:
            monkeypatch.setattr(reports, "write_row", lambda row: lead.lose())
            with pytest.raises(NotLeader):
                reports.report()  # calls check_leader() between its rows

Guaranteed: no Redis, thread or clock is involved, and afterwards everything is as before. It
decides ``is_leader()``, ``current_term()``, ``check_leader()``, ``leading()``, a
``LeaderElection`` that is started inside, and what ``send_from="leader"`` holds back. Not
guaranteed: anything about workers and beats. Only real ones show whether a message reaches the
leader, and ``task.apply()`` runs a body wherever it is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from celery import Celery

from .runtime.app_runtime import runtime_of
from .runtime.apps import current
from .runtime.settings import WORKER
from .runtime.shared_memory import LeaseView

_EVER = float("inf")


class Lead:
    """What this process believes of one election, in the hands of a test."""

    def __init__(self, view: LeaseView) -> None:
        self._view = view

    def lose(self) -> None:
        """Lead no longer, as after a pause or a lost connection."""
        self._view.withdraw()

    def win(self, term: int) -> None:
        """Lead with ``term`` from now on; a real term is higher than every term before it."""
        self._view.publish(term, _EVER)


@contextlib.contextmanager
def leading_as(app: Celery, election: str = WORKER, *, term: int = 1) -> Iterator[Lead]:
    """While open, this process leads ``election`` with ``term``, and ``app`` is the current app."""
    with following(app, election) as lead:
        lead.win(term)
        yield lead


@contextlib.contextmanager
def following(app: Celery, election: str = WORKER) -> Iterator[Lead]:
    """While open, this process takes part in ``election`` and another leads."""
    with current(app), runtime_of(app).beliefs.staged(election) as view:
        yield Lead(view)
