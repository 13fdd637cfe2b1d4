"""Skips a message: its task ends as skipped, and the message is acknowledged.

A worker's event loop must not wait for a database, so a thread stores the results. Guaranteed:
a skipped message keeps no place in the prefetch while the result backend is away. Not
guaranteed: that a result is stored if the worker ends while the result backend is away.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.task import Context

from celery_leader.compat.celery_worker import Request, context_of
from celery_leader.core.events import Skipped
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.log import get_logger
from celery_leader.tasks.skipped import TaskSkipped, store_skipped

if TYPE_CHECKING:
    from .state import WorkerState

logger = get_logger(__name__)

#: Why a message is skipped, unless another reason is given.
NOT_LEADING = "not leading"

_PATIENCE = 1.0  # seconds; how long a message stays unacknowledged while its result is stored
_PAUSE = 1.0  # seconds between tries while the result backend is away
_MOST = 10_000  # results that wait in memory, at most
_TRIES = 5  # of a result that fails while others are stored


def skip(
    state: WorkerState,
    election: str,
    request: Request,
    acknowledge: Callable[[], object],
    why: str = NOT_LEADING,
) -> None:
    """End a message that this worker must not run, as Celery ends a revoked one.

    The message is acknowledged when its result is stored, or after a moment if that takes longer.
    Unacknowledged it would take the place of a message that can run, and a later delivery would
    only be skipped again.
    """
    reason = TaskSkipped(
        f"{request.hostname} does not lead {election!r} and did not run {request.task.name}"
        if why == NOT_LEADING
        else f"{request.hostname} did not run {request.task.name}: {why}"
    )
    settle = _once(acknowledge)

    def told(stored: bool) -> None:
        after = functools.partial(_report, election, request, why, settle) if stored else settle
        state.call_in_loop(after)

    state.skipped.add(Unstored(request.task, context_of(request), reason, told))
    if state.skipped.failing:
        settle()
    else:
        state.consumer.timer.call_after(_PATIENCE, settle)


def _report(election: str, request: Request, why: str, settle: Callable[[], None]) -> None:
    """The skip is stored: tell monitors and observers."""
    task = request.task
    logger.info("%s: %s[%s] skipped, %s", election, task.name, request.id, why)
    how = {"terminated": False, "signum": None, "expired": False}
    request.send_event("task-revoked", **how)
    signals.task_revoked.send(sender=task, request=context_of(request), **how)
    runtime_of(task.app).observers.tell(
        Skipped(election, request.hostname, task.name, request.id, "receiver")
    )
    settle()


def _once(act: Callable[[], object]) -> Callable[[], None]:
    """``act``, but only the first time."""
    left = [act]

    def do() -> None:
        if left:
            left.pop()()

    return do


@dataclass(slots=True, eq=False)
class Unstored:
    """A skipped task whose result is not stored yet.

    Attributes:
        task: the task.
        context: its request, for the result backend.
        reason: the error that is its result.
        told: called in the storing thread: with ``False`` after each try that failed, with
            ``True`` when the result is stored.
        tries: how many tries have failed.
    """

    task: Any
    context: Context
    reason: TaskSkipped
    told: Callable[[bool], None]
    tries: int = 0


class SkippedResults:
    """Stores the results of skipped tasks in a thread of its own."""

    def __init__(self) -> None:
        self._waiting: deque[Unstored] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        #: Whether no result was stored since the last failure.
        self.failing = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, result: Unstored) -> None:
        """Store ``result`` soon."""
        with self._changed:
            if len(self._waiting) >= _MOST:
                _give_up(self._waiting.popleft(), "too many wait")
            self._waiting.append(result)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="leader-skips", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self, timeout: float) -> bool:
        """Wait until everything is stored, at most ``timeout`` seconds; whether it is."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._waiting, timeout)
        if not done:
            logger.error("%d result(s) of skipped tasks could not be stored", len(self._waiting))
        return done

    def _run(self) -> None:
        while True:
            if not self._waiting:
                # Not under the lock, for which the worker's event loop may wait.
                _close_databases()
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                result = self._waiting[0]
            try:
                result.task.app.set_current()  # in this thread
                store_skipped(result.task, result.context, result.reason)
            except Exception as exc:
                self._failed(result, exc)
                threading.Event().wait(_PAUSE)
            else:
                self._stored(result)

    def _stored(self, result: Unstored) -> None:
        if self.failing:
            logger.info("results of skipped tasks are stored again; %d wait", len(self._waiting))
            self.failing = False
        _tell(result, stored=True)
        with self._changed:
            self._remove(result)
            self._changed.notify_all()

    def _failed(self, result: Unstored, exc: Exception) -> None:
        # A connection that failed must not be used again; Django too checks it after a request.
        _close_databases()
        result.tries += 1
        with self._changed:
            if not self._remove(result):
                pass  # given up meanwhile, because too many wait
            elif result.tries < _TRIES or self.failing:
                self._waiting.append(result)  # behind the others, which may be stored
            else:
                _give_up(result, _first_line(exc))
        if not self.failing:
            self.failing = True
            logger.error(
                "results of skipped tasks cannot be stored: %s; the worker goes on, and stores"
                " them when its result backend takes them",
                _first_line(exc),
            )
        _tell(result, stored=False)

    def _remove(self, result: Unstored) -> bool:
        """Take ``result`` out of the first place; whether it was still there."""
        if self._waiting and self._waiting[0] is result:
            self._waiting.popleft()
            return True
        return False


def _tell(result: Unstored, *, stored: bool) -> None:
    try:
        result.told(stored)
    except Exception:
        # The thread must live on: without it, no result is stored any more.
        logger.exception("%s[%s]: the end of a skip", result.task.name, result.context.id)


def _give_up(result: Unstored, why: str) -> None:
    logger.error(
        "%s[%s] was skipped, and its result cannot be stored: %s",
        result.task.name,
        result.context.id,
        why,
    )


def _first_line(exc: Exception) -> str:
    """The first line of an error; later lines may show the statement with its values."""
    return f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0][:200]}"


def _close_databases() -> None:
    """Close this thread's Django connections; nothing else would ever close them."""
    django = sys.modules.get("django.db")
    if django is not None:
        try:
            django.connections.close_all()
        except Exception as exc:
            logger.debug("Django's connections cannot be closed: %s", exc)
