"""Gives a worker's leases up when no leader-only body needs them any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.local_candidate import LocalCandidate

from .giving_back import active_requests_of, running_elections
from .state import WorkerState

_GLANCE = 0.01  # seconds between looks for a leader-only body that still runs


class Resigning:
    """Waits for the bodies of each election to end, and then gives its lease up.

    It looks again and again: Celery has no hook for every end of a body while a pool drains.

    Args:
        runtime: the runtime of the worker's app.
        state: the state of the worker.
        candidates: the worker's candidates, by election.
        consumes: whether the worker still consumes from an election's leader queue.
        wake: has the worker see what it may consume.
    """

    def __init__(
        self,
        runtime: AppRuntime,
        state: WorkerState,
        candidates: dict[str, LocalCandidate],
        consumes: Callable[[str], bool],
        wake: Callable[[], None],
    ) -> None:
        self.candidates = candidates
        self._runtime = runtime
        self._state = state
        self._consumes = consumes
        self._wake = wake
        self._ended = threading.Event()

    def resign_when_idle(self) -> None:
        """A shutdown has begun: resign each lease as soon as no body needs it."""
        threading.Thread(target=self._resign, name="leader-farewell", daemon=True).start()

    def step_down_when_idle(self, election: str) -> None:
        """Give the lease to its next leader when no body needs it, and campaign on.

        The bodies that run now are waited for first, and meanwhile others go on to start: one that
        takes minutes must not keep all others from running. Then no more start, the rest is
        waited for, and the lease is passed on.
        """
        threading.Thread(
            target=self._step_down,
            args=(election, active_requests_of(election)),
            name=f"leader-steps-down-{election}",
            daemon=True,
        ).start()

    def end(self) -> None:
        """The pool has drained: stop waiting."""
        self._ended.set()

    def _resign(self) -> None:
        kept = dict(self.candidates)
        while kept:
            running = running_elections(self._state)
            needed = {name for name in running if self._runtime.beliefs.term(name)}
            for name in kept.keys() - needed:
                self._runtime.participation.resign(kept.pop(name))
            if self._ended.wait(_GLANCE):
                return

    def _step_down(self, election: str, first: list[Any]) -> None:
        stepping_down = self._runtime.participation.stepping_down
        while not self._ended.wait(_GLANCE):
            step = stepping_down.get(election)
            if step is None:
                return
            running = active_requests_of(election)
            if not step.closing:
                awaited = [request for request in running if request in first]
                step.waits_for = tuple(request.id for request in awaited)
                if not awaited:
                    step.closing = True
                    self._wake()
                continue
            step.waits_for = tuple(request.id for request in running)
            if not self._consumes(election) and election not in running_elections(self._state):
                candidate, request = self.candidates[election], step.request
                self._runtime.participation.step_down(candidate, request.successor, request.reason)
                return
