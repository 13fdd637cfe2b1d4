"""What a skipped task ends in.

Guaranteed: its result, and that of every task that was to come after it (the rest of
its chain, what is linked to it, what those contain), is in Celery's own state
``REVOKED``, so that ``get()`` raises ``TaskSkipped`` instead of waiting for ever, and
a chord that one of them is part of fails. Not guaranteed: that errbacks of the skipped
task itself are called; Celery does not call them for a revoked task either. Nor that a
result is stored whose worker ends while its result backend is away.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from celery_leader.errors import LeaderError
from celery_leader.runtime.clock import now

logger = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds between tries while the result backend is away
_MOST = 10_000  # results that wait in memory, at most
_TRIES = 5  # of a result that fails while others are stored


class TaskSkipped(TaskRevokedError, LeaderError):  # type: ignore[misc]
    """The task was not run: its sender or receiver did not lead, and was told to skip it then."""


def store_skipped(task: Any, request: Context, reason: TaskSkipped) -> None:
    """Store that ``request`` was skipped, and with it all that will now never be sent."""
    to_come = [
        context
        for signature in (*(request.callbacks or ()), *(request.chain or ()))
        for context in _tasks_in(signature)
    ]
    ignored = task.ignore_result if request.ignore_result is None else request.ignore_result
    # In a chain of tasks whose first ignores its result, somebody waits for the last one.
    if to_come or not ignored or task.store_errors_even_if_ignored:
        _store(task.backend, request, reason)
    elif request.chord:
        task.backend.on_chord_part_return(request, states.REVOKED, reason)
    for context in to_come:
        _store(task.backend, context, reason)


def _store(backend: Any, request: Context, reason: TaskSkipped) -> None:
    backend.store_result(request.id, reason, states.REVOKED, request=request)
    if request.chord:
        backend.on_chord_part_return(request, states.REVOKED, reason)


def _tasks_in(signature: Any) -> Iterator[Context]:
    """The tasks of a signature that will not be sent, as far as somebody can wait for them."""
    kind = signature.get("subtask_type")
    kwargs = signature.get("kwargs") or {}
    options = signature.get("options") or {}
    if kind in ("chain", "group"):
        yield from _tasks_in_all(kwargs.get("tasks"))
    elif kind == "chord":
        for context in _tasks_in_all(kwargs.get("header")):
            # The chord itself was never begun: nothing counts the parts of its header.
            context.chord = None
            yield context
        yield from _tasks_in_all([kwargs.get("body")])
    elif options.get("task_id"):
        yield Context(
            id=options["task_id"],
            task=signature.get("task"),
            args=signature.get("args"),
            kwargs=kwargs,
            group=options.get("group_id"),
            group_index=options.get("group_index"),
            chord=options.get("chord"),
            root_id=options.get("root_id"),
            parent_id=options.get("parent_id"),
        )
    yield from _tasks_in_all(options.get("link"))


def _tasks_in_all(signatures: Any) -> Iterator[Context]:
    if isinstance(signatures, dict):
        signatures = [signatures]
    members: Iterable[Any] = signatures or ()
    for signature in members:
        if signature is not None:
            yield from _tasks_in(signature)


# -- in a worker ------------------------------------------------------------------------


@dataclass(slots=True)
class Unstored:
    """A skipped task whose end is to be stored.

    Attributes:
        task: the task.
        context: its request, for the backend.
        reason: what it ends in.
        told: called in the storing thread: with ``False`` after each try that failed, with
            ``True`` once it is stored.
        tries: how often that failed.
    """

    task: Any
    context: Context
    reason: TaskSkipped
    told: Callable[[bool], None]
    tries: int = 0


class SkippedResults:
    """Stores what skipped tasks end in, in a thread of its own, until the backend takes it.

    A worker's event loop must not wait for a database: it would run no task meanwhile.
    """

    def __init__(self) -> None:
        self._waiting: deque[Unstored] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._last_stored = 0.0
        #: Since when the backend refuses everything, by this process's clock.
        self.failing_since: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, result: Unstored) -> None:
        """Store ``result`` soon."""
        with self._changed:
            if len(self._waiting) >= _MOST:
                self._give_up(self._waiting.popleft(), "too many wait")
            self._waiting.append(result)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="leader-skips", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self, timeout: float) -> bool:
        """Wait until everything is stored; whether it was, within ``timeout`` seconds."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._waiting, timeout)
        if not done:
            logger.error("%d result(s) of skipped tasks could not be stored", len(self._waiting))
        return done

    def _run(self) -> None:
        while True:
            if not self._waiting:
                # Not under the lock, for which the worker's event loop may wait.
                _let_go_of_databases()
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                result = self._waiting[0]
            try:
                result.task.app.set_current()  # in this thread
                store_skipped(result.task, result.context, result.reason)
            except Exception as exc:
                self._failed(result, exc)
            else:
                self._stored(result)

    def _stored(self, result: Unstored) -> None:
        self._last_stored = now()
        with self._changed:
            self._remove(result)
            self._changed.notify_all()
        if self.failing_since is not None:
            logger.info("results of skipped tasks are stored again; %d wait", len(self._waiting))
            self.failing_since = None
        self._tell(result, stored=True)

    def _failed(self, result: Unstored, exc: Exception) -> None:
        # Whatever it is, a connection that failed is not to be used again: as Django's own
        # close_if_unusable_or_obsolete() does it at the end of a request.
        _let_go_of_databases()
        result.tries += 1
        with self._changed:
            self._remove(result)
            if result.tries < _TRIES or self._last_stored == 0.0 or self._all_fail():
                self._waiting.append(result)  # behind the others, which may be stored
            else:
                self._give_up(result, _first_line(exc))
        if self.failing_since is None:
            self.failing_since = now()
            logger.error(
                "results of skipped tasks cannot be stored: %s; the worker goes on, and stores"
                " them when its result backend takes them",
                _first_line(exc),
            )
        self._tell(result, stored=False)
        threading.Event().wait(_PAUSE)

    def _tell(self, result: Unstored, *, stored: bool) -> None:
        try:
            result.told(stored)
        except Exception:
            # The thread must outlive this: without it no result is stored any more.
            logger.exception("%s[%s]: the end of a skip", result.task.name, result.context.id)

    def _all_fail(self) -> bool:
        return self.failing_since is not None and self._last_stored < self.failing_since

    def _remove(self, result: Unstored) -> None:
        if self._waiting and self._waiting[0] is result:
            self._waiting.popleft()

    def _give_up(self, result: Unstored, why: str) -> None:
        logger.error(
            "%s[%s] was skipped, and its result cannot be stored: %s",
            result.task.name,
            result.context.id,
            why,
        )


def _first_line(exc: Exception) -> str:
    """The first line of an error; later lines may show the statement with its values."""
    return f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0][:200]}"


def _let_go_of_databases() -> None:
    """Close this thread's Django connections; nothing else would ever close them."""
    django = sys.modules.get("django.db")
    if django is not None:
        try:
            django.connections.close_all()
        except Exception as exc:
            logger.debug("Django's connections cannot be closed: %s", exc)
