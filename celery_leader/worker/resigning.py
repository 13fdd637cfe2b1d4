"""Gives a worker's leases up when no leader-only body needs them any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from celery_leader.core.watchdog import Shutdown
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import now, wall_clock
from celery_leader.runtime.local_candidate import LocalCandidate
from celery_leader.runtime.settings import Settings
from celery_leader.tasks.marks import LeaderOnly

from .giving_back import active_requests_of, running_bodies
from .state import WorkerState

_GLANCE = 0.01  # seconds between looks for a leader-only body that still runs


class Resigning:
    """Waits for the bodies of each election to end, and then gives its lease up.

    In a warm shutdown it need not wait for all of them: a body that can be aborted has
    ``leader_abort_grace`` to end, and the successors of one with ``max_running`` know of it.

    It looks again and again: Celery has no hook for every end of a body while a pool drains.

    Args:
        runtime: the runtime of the worker's app.
        state: the state of the worker.
        candidates: the worker's candidates, by election.
        eligible: the elections in which the worker takes part.
        consumes: whether the worker still consumes from an election's leader queue.
        wake: has the worker see what it may consume.
    """

    def __init__(
        self,
        runtime: AppRuntime,
        state: WorkerState,
        candidates: dict[str, LocalCandidate],
        eligible: Iterable[str],
        consumes: Callable[[str], bool],
        wake: Callable[[], None],
    ) -> None:
        self.candidates = candidates
        self.shutdowns = {election: Shutdown() for election in eligible}
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
            args=(election, [request for request, _ in active_requests_of(election)]),
            name=f"leader-steps-down-{election}",
            daemon=True,
        ).start()

    def end(self) -> None:
        """The pool has drained: stop waiting."""
        self._ended.set()

    def _resign(self) -> None:
        began, settings = now(), self._runtime.settings
        kept = dict(self.candidates)
        while kept:
            running, waited = running_bodies(self._state), now() - began
            for name in list(kept):
                bodies = running.get(name)
                if not bodies:
                    self._runtime.participation.resign(kept.pop(name))
                elif not self._runtime.beliefs.term(name) or all(
                    _may_outlive_the_lease(body, waited, settings) for body in bodies
                ):
                    self._pass_on(name)
            if self._ended.wait(_GLANCE):
                return

    def _pass_on(self, election: str) -> None:
        """Lead no longer, and stay in contact: what the bodies hold is kept as long."""
        if not self.shutdowns[election].begun:
            self.shutdowns[election].begun = True
            self._runtime.participation.look_around()

    def _step_down(self, election: str, first: list[Any]) -> None:
        candidate = self.candidates[election]
        participation = self._runtime.participation
        since, told = wall_clock(), None
        while not self._ended.wait(_GLANCE):
            step = participation.stepping_down.get(election)
            if step is None:
                break
            at_once = step.request.at_once
            awaited = [
                request
                for request, options in active_requests_of(election)
                if (step.closing or request in first) and not (at_once and _can_be_aborted(options))
            ]
            step.waits_for = tuple(request.id for request in awaited)
            if told != step.waits_for[:1]:
                told = step.waits_for[:1]
                participation.introduce(candidate, steps_down_since=since, waits_for="".join(told))
            if not step.closing:
                if not awaited:
                    step.closing = True
                    self._wake()
            elif not self._consumes(election) and not self._has_to_wait(election, at_once):
                self._say_no_more(candidate)
                participation.step_down(candidate, step.request.successor, step.request.reason)
                return
        self._say_no_more(candidate)

    def _say_no_more(self, candidate: LocalCandidate) -> None:
        # Before the lease is given up: a follower is in contact once a lease only.
        self._runtime.participation.introduce(candidate, steps_down_since=0.0, waits_for="")

    def _has_to_wait(self, election: str, at_once: bool) -> bool:
        bodies = running_bodies(self._state).get(election, [])
        return not all(at_once and _can_be_aborted(options) for options in bodies)


def _can_be_aborted(options: LeaderOnly) -> bool:
    return options.on_deposed == "abort"


def _may_outlive_the_lease(options: LeaderOnly, waited: float, settings: Settings) -> bool:
    """Whether a shutdown that has ``waited`` so long need not keep the lease for such a body."""
    if _can_be_aborted(options):
        return settings.abort_grace is not None and waited >= settings.abort_grace
    # Its successors know that it still runs. Short ones end with the lease, all the same.
    return options.max_running is not None and waited >= settings.timing.renew_interval
