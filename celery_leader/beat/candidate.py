"""One beat as a candidate: it campaigns, shows that it is alive, steps down and resigns.

Guaranteed: a leader that is asked to step down does so between two turns, and never in the
middle of a dispatch. Not guaranteed: that the lease is given up before the process ends. If
Redis does not answer in time, the lease expires.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from celery_leader.compat.celery import worker_pid
from celery_leader.core.events import Change, Deposed, Elected, StepDownRequested
from celery_leader.core.watchdog import BrokerHeartbeat, Heartbeat, Requirement
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import now
from celery_leader.runtime.context import ALWAYS_TERM
from celery_leader.runtime.local_candidate import LocalCandidate
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import BEAT

from .moments import timestamp
from .wall_clock import WallClock

logger = get_logger(__name__)

#: Seconds; the longest wait of a follower, and the longest sleep of a beat inside a worker.
STEP = 1.0


class BeatCandidate:
    """One beat process in the ``beat`` election.

    It takes no part before ``start``, which the scheduler of Celery's banner must not call.
    """

    def __init__(self, app: Celery, runtime: AppRuntime) -> None:
        self._app = app
        self._runtime = runtime
        self.local: LocalCandidate | None = None
        #: Watches the broker's answers; ``None`` if the broker is the Redis that has the lease.
        self.broker_heartbeat: BrokerHeartbeat | None = None
        #: How often this beat has lost the lead.
        self.depositions = 0
        self._heartbeat: Heartbeat | None = None
        self._clock: WallClock | None = None
        self._elected = threading.Event()
        self._turn = threading.Lock()
        self._request: StepDownRequested | None = None
        self._resigned: threading.Event | None = None
        # The worker that has made this process with ``celery worker -B``.
        self._worker_pid = worker_pid()

    def start(self, scheduler: str) -> None:
        """Start to campaign; the register of candidates shows the class name ``scheduler``."""
        runtime = self._runtime
        settings = runtime.settings
        node = runtime.node_names.of_beat()
        self._heartbeat = runtime.new_heartbeat("the beat")
        self.show_life()
        if not runtime.redis.is_broker:
            self.broker_heartbeat = BrokerHeartbeat(settings.timing.lease_duration)
        if settings.beat_clock_tolerance:
            self._clock = WallClock(self._time_of_day, settings.beat_clock_tolerance)
        requirements: list[Requirement] = [
            each
            for each in (self._heartbeat, self.broker_heartbeat, self._clock)
            if each is not None
        ]
        self.local = runtime.participation.enter(
            BEAT,
            node,
            self.on_change,
            requirements=requirements,
            role="beat",
            scheduler=scheduler,
        )
        if self._worker_pid is not None:
            # A worker stops its beat with SIGTERM, which by default ends a process at once.
            signal.signal(signal.SIGTERM, _exit)

    def term(self) -> int | None:
        """The term this beat leads with at this moment, or ``None``; no I/O."""
        if self.local is None:
            return ALWAYS_TERM if self._runtime.always_leads() else None
        if self._clock is not None and self._clock.is_off(now()):
            # This cannot wait for the election's thread: a wrong clock must send nothing.
            self._runtime.participation.look_around()
            return None
        return self.local.term()

    # -- the turns of the scheduler --------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold open for one turn of the scheduler; meanwhile this leader does not step down."""
        self.show_life()
        try:
            with self._turn:
                self._end_without_worker()
                yield
        finally:
            self._step_down_if_asked()

    def show_life(self, rest: float = 0.0) -> None:
        """Tell the watchdog that this beat moves, and may now rest for ``rest`` seconds."""
        if self._heartbeat is not None:
            self._heartbeat.beat(now(), rest)

    def await_election(self, longest: float) -> None:
        """Wait to be elected, for one step or ``longest`` seconds at most."""
        self._elected.wait(min(STEP, self._runtime.settings.timing.renew_interval, longest))

    def longest_rest(self, wait: float) -> float:
        """How long beat may sleep; an embedded beat must soon look for its worker again."""
        return wait if self._worker_pid is None else min(wait, STEP)

    def on_change(self, change: Change) -> None:
        """React to a change of the election; called in the election's thread."""
        match change:
            case Elected():
                self._request = None
                self._elected.set()
            case Deposed():
                self.depositions += 1
                self._elected.clear()
            case StepDownRequested():
                # Do not wait for the next turn: beat may sleep for minutes if nothing is due.
                self._request = change
                self._step_down_if_asked()

    def resign(self) -> None:
        """Give the lease up for good; a second call does no harm.

        At SIGTERM beat calls this twice. The first call is inside the signal handler, and must not
        wait. A beat embedded in a worker calls this once, outside of the handler.
        """
        if self.local is None:
            return
        if self._resigned is None:
            self._resigned = self._runtime.participation.resign(self.local)
            if self._worker_pid is None:
                return
        if not self._resigned.wait(self._runtime.participation.farewell_timeout):
            logger.warning("%s: the lease could not be given up in time; it will expire", BEAT)

    def _time_of_day(self) -> float:
        return timestamp(self._app.now())

    def _step_down_if_asked(self) -> None:
        # During a turn the lock is taken, and the turn calls this at its end.
        while self._request is not None and self._turn.acquire(blocking=False):
            try:
                asked, self._request = self._request, None
                if asked is not None and self.local is not None:
                    participation = self._runtime.participation
                    participation.step_down(self.local, asked.successor, asked.reason)
            finally:
                self._turn.release()

    def _end_without_worker(self) -> None:
        # A worker that is killed leaves its embedded beat behind. That beat would go on leading.
        if self._worker_pid is not None and os.getppid() != self._worker_pid:
            logger.warning("%s: the worker this beat belongs to is gone, so it ends", BEAT)
            raise SystemExit(1)


def _exit(*_: Any) -> None:
    raise SystemExit(0)
