"""The worker's elections: a step of Celery's consumer that lives as long as the worker.

It starts after ``Tasks`` at every (re)connect, and shuts down once, after the pool has drained
and before the broker connection is closed. Guaranteed: a connection that is lost and made again
resigns nothing. From the beginning of a shutdown no leader-only body starts. Each lease is kept
until its last body has ended, and is then passed on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from billiard import get_start_method
from celery import bootsteps

from celery_leader.compat.celery_worker import (
    forgets_requests,
    is_in_pool,
    keep_running_jobs,
)
from celery_leader.core.events import Change, Deposed, Event, StepDownRequested
from celery_leader.metrics_server import serve_metrics
from celery_leader.runtime import remote_control
from celery_leader.runtime.app_runtime import AppRuntime, runtime_of
from celery_leader.runtime.clock import now
from celery_leader.runtime.command_line import refusing_clearly
from celery_leader.runtime.local_candidate import LocalCandidate, SteppingDown
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import BEAT, WORKER, check_elections, check_priority
from celery_leader.runtime.spelling import closest
from celery_leader.tasks.leader_only import adopt_tasks
from celery_leader.tasks.marks import options_of

from . import handing_over
from .broker_link import link_of
from .event_loop import EventLoop
from .events import WorkerEvents
from .giving_back import give_back_all, give_back_next
from .leader_queue import LeaderQueues, check_limits
from .resigning import Resigning
from .state import worker_state
from .unknown_tasks import UnknownTasks

logger = get_logger(__name__)

_LAST_RESULTS = 2.0  # seconds; how long the end of a worker waits for its result backend


class LeaderStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Takes part in the worker's elections, and consumes the leader queues while leading."""

    label = "Leader"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(
        self,
        c: Any,
        no_candidate: bool = False,
        elections: str | None = None,
        leader_priority: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(c, **kwargs)
        remote_control.register()
        adopt_tasks(c.app)
        self._runtime = runtime = runtime_of(c.app)
        with refusing_clearly():
            runtime.check()
            runtime.tell_unknown_settings()
            serve_metrics(c.app)
            eligible = _elections_of(runtime, elections)
            if leader_priority is not None:
                check_priority(leader_priority, "--leader-priority")
            check_limits(runtime, eligible)
        self._priority = leader_priority
        self._eligible = [] if no_candidate else eligible
        # Before the pool starts, so that its processes can read the beliefs.
        if not forks(c.controller):
            runtime.beliefs.publish_address()
        runtime.beliefs.reserve(self._eligible)
        self._state = state = worker_state(c.app)
        self._loop = EventLoop(c, runtime, self._look_around)
        self._link = link_of(runtime)
        self._events = WorkerEvents()
        candidates: dict[str, LocalCandidate] = {}
        self._queues = LeaderQueues(runtime, self._eligible, state, candidates)
        self._resigning = Resigning(
            runtime, state, candidates, self._eligible, self._queues.consumes, self._wake
        )
        self._unknown = UnknownTasks(runtime, state)
        self._takes_part = False
        if self._eligible and getattr(c.pool, "is_green", False):
            _warn_of_bodies_that_cannot_be_aborted(c.app)

    # -- called by Celery -----------------------------------------------------------------

    def start(self, c: Any) -> None:
        """The worker is connected, for the first time or again."""
        self._state.consumer, self._state.wake = c, self._loop.wake
        keep_running_jobs(c.pool)
        self._unknown.connected(c)
        handing_over.connected(self._state)
        self._forget_waiting(c)
        self._queues.connected(c)
        self._runtime.participation.follow(c.connection)
        self._link.connected(c)
        if not self._takes_part:
            self._takes_part = True
            self._take_part(c)
        # With an event loop this waits until the loop begins. RabbitMQ delivers at once, and a
        # message that comes while a later step waits for an answer would find no callback and
        # end the worker.
        if c.hub is None:
            c.call_soon(self._queues.update)
        self._events.send(c)

    def _forget_waiting(self, c: Any) -> None:
        """Forget the requests of an earlier connection that this worker will not run."""
        waiting = self._state.waiting
        for key, request in list(waiting.items()):
            if forgets_requests(c.pool) or not is_in_pool(request):
                del waiting[key]

    def _take_part(self, c: Any) -> None:
        self._runtime.observers.add(self._on_event)
        requirements = [r for r in (self._loop.heartbeat, self._link.heartbeat) if r is not None]
        for election in self._eligible:
            listener = functools.partial(self._on_change, election)
            candidate = self._runtime.participation.enter(
                election,
                c.hostname,
                listener,
                self._priority,
                [*requirements, self._resigning.shutdowns[election]],
                role="worker",
            )
            if candidate is not None:
                self._resigning.candidates[election] = candidate

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """The event loop begins."""
        self._loop.begins(hub)
        self._queues.update()
        if not self._runtime.beliefs.shutting_down:
            self._loop.watch(hub)

    def stop(self, c: Any) -> None:
        """The connection was lost, or a shutdown goes on: no reason to resign yet."""
        self._loop.excuse()
        self._link.lost()

    def close(self, c: Any) -> None:
        """A shutdown begins: start nothing new, keep each lease while a body needs it."""
        self._loop.excuse()
        self._link.end()
        self._runtime.beliefs.announce_shutdown()
        self._queues.stop()
        give_back_next(self._state, self._eligible)
        self._resigning.resign_when_idle()
        # Last, since there may be thousands, and the next leader must not wait for them.
        self._unknown.put_back_all()
        give_back_all(self._state, self._eligible)

    def shutdown(self, c: Any) -> None:
        """The pool has drained: give everything up."""
        self._resigning.end()
        if not self._runtime.participation.resign_all():
            logger.warning("the lease could not be given up in time; it will expire")
        handing_over.hand_over_kept(self._state)
        self._state.skipped.finish(_LAST_RESULTS)
        self._events.send_last(c)
        self._queues.remove()

    def terminate(self, c: Any) -> None:
        """A cold shutdown goes on: nothing to do before ``shutdown``."""

    def info(self, c: Any) -> dict[str, Any]:
        """What ``celery inspect stats`` says of this worker's elections."""
        standings = remote_control.standings(self._runtime)
        return {"leader": standings, "leader_unstored_skips": len(self._state.skipped)}

    # -- from the election thread ---------------------------------------------------------

    def _on_change(self, election: str, change: Change) -> None:
        stepping_down = self._runtime.participation.stepping_down
        match change:
            case StepDownRequested() if not self._runtime.beliefs.shutting_down:
                if election in stepping_down:  # only the successor or the reason has changed
                    stepping_down[election].request = change
                    return
                stepping_down[election] = SteppingDown(change, now())
                self._resigning.step_down_when_idle(election)
            case Deposed():
                stepping_down.pop(election, None)
        self._wake()

    def _wake(self) -> None:
        """Have the worker see now what it may consume."""
        self._loop.wake()
        self._queues.interrupt_pop()

    def _on_event(self, event: Event) -> None:
        if self._events.observe(event):
            self._loop.wake()

    # -- in the event loop ------------------------------------------------------------------

    def _look_around(self) -> None:
        self._queues.update()
        self._events.send(self._state.consumer)


def _elections_of(runtime: AppRuntime, option: str | None) -> list[str]:
    """The elections that this worker takes part in; ``option`` is what ``--elections`` says."""
    settings = runtime.settings
    named = settings.elections
    if option is not None:
        named = check_elections(filter(None, option.split(",")), "--elections")
        _warn_of_new_elections(named, runtime)
    if not settings.candidate:
        return []
    return sorted({WORKER, *runtime.task_elections} if named is None else {*named})


def _warn_of_new_elections(named: Iterable[str], runtime: AppRuntime) -> None:
    """Warn of elections that no task and no setting names: they may be misspelt."""
    known = runtime.elections() - {BEAT}
    for name in named:
        if name in known:
            continue
        meant = closest(name, known)
        logger.warning(
            "--elections: no leader-only task and no setting names the election %s, which this"
            " worker now takes part in%s",
            name,
            f"; did you mean {meant}?" if meant else " (put it into leader_elections)",
        )


def forks(worker: Any) -> bool:
    """Whether the pool's processes will be forked; spawned ones inherit no memory."""
    chosen = getattr(worker, "pool_start_method", "fork")  # of Celery 5.7
    return chosen == "fork" and get_start_method() == "fork"


def _warn_of_bodies_that_cannot_be_aborted(app: Any) -> None:
    bound = {name: options_of(task) for name, task in app.tasks.items()}
    names = sorted(
        name for name, options in bound.items() if options and options.on_deposed == "abort"
    )
    if names:
        logger.warning(
            "on_deposed='abort' has no effect in a gevent or eventlet pool: %s will finish;"
            " have them call check_leader(), or use another pool",
            ", ".join(names),
        )
