"""Gives a worker's leases up when no leader-only body needs them any more."""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery_leader.runtime.campaign import Campaign
from celery_leader.runtime.leadership import Leadership

from .giving_back import running_elections
from .state import WorkerState

_GLANCE = 0.01  # seconds between looks for a leader-only body that still runs


class Resigning:
    """Waits for the bodies of each election to end, and then gives its lease up.

    It looks again and again: Celery has no hook for every end of a body while a pool drains.

    Args:
        leadership: the leadership of the worker's app.
        state: the state of the worker.
        consumes: whether the worker still consumes from an election's leader queue.
    """

    def __init__(
        self, leadership: Leadership, state: WorkerState, consumes: Callable[[str], bool]
    ) -> None:
        self.campaigns: dict[str, Campaign] = {}
        self._leadership = leadership
        self._state = state
        self._consumes = consumes
        self._ended = threading.Event()

    def resign_when_idle(self) -> None:
        """A shutdown has begun: resign each lease as soon as no body needs it."""
        threading.Thread(target=self._resign, name="leader-farewell", daemon=True).start()

    def step_down_when_idle(self, election: str) -> None:
        """Give the lease to its next leader as soon as no body needs it, and campaign on."""
        threading.Thread(
            target=self._step_down,
            args=(election,),
            name=f"leader-gives-way-{election}",
            daemon=True,
        ).start()

    def end(self) -> None:
        """The pool has drained: stop waiting."""
        self._ended.set()

    def _resign(self) -> None:
        kept = dict(self.campaigns)
        while kept:
            running = running_elections(self._state)
            needed = {name for name in running if self._leadership.beliefs.term(name)}
            for name in kept.keys() - needed:
                self._leadership.candidacies.resign(kept.pop(name))
            if self._ended.wait(_GLANCE):
                return

    def _step_down(self, election: str) -> None:
        while not self._ended.wait(_GLANCE):
            order = self._leadership.candidacies.giving_way.get(election)
            if order is None:
                return
            if not self._consumes(election) and election not in running_elections(self._state):
                campaign = self.campaigns[election]
                self._leadership.candidacies.step_down(campaign, order.successor, order.reason)
                return
