"""How a skipped task ends.

Guaranteed: its result, unless ignored, is in Celery's own state ``REVOKED``. So is the result of
every task that was to come after it: the rest of its chain, the tasks linked to it, and all that
these contain. ``get()`` then raises ``TaskSkipped`` instead of waiting for ever. A chord fails if
one of these tasks is part of it. Not guaranteed: that errbacks of the skipped task are called;
Celery does not call them for a revoked task either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.utils.functional import maybe_list

from celery_leader.errors import LeaderError


class TaskSkipped(TaskRevokedError, LeaderError):  # type: ignore[misc]
    """The task was not run: its sender or receiver did not lead, and its options say to skip."""


def store_skipped(task: Any, request: Context, reason: TaskSkipped) -> None:
    """Store that ``request`` was skipped, and every task after it that is now never sent."""
    to_come = [
        context
        for signature in (*(request.callbacks or ()), *(request.chain or ()))
        for context in _tasks_in(signature)
    ]
    ignored = task.ignore_result if request.ignore_result is None else request.ignore_result
    # A chain whose first task ignores its result still has a last task that people wait for.
    if to_come or not ignored or task.store_errors_even_if_ignored:
        _store(task.backend, request, reason)
    elif request.chord:
        task.backend.on_chord_part_return(request, states.REVOKED, reason)
    for context in to_come:
        _store(task.backend, context, reason)


def request_of(name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Context:
    """The request of a task that is not sent, for its result backend.

    Args:
        name: the task's name.
        args: its positional arguments.
        kwargs: its named arguments.
        options: its sending options, named as in ``apply_async`` and in signatures.
    """
    same = ("group_index", "chord", "chain", "ignore_result", "root_id", "parent_id")
    return Context(
        id=options.get("task_id"),
        task=name,
        args=args,
        kwargs=kwargs,
        group=options.get("group_id"),
        callbacks=maybe_list(options.get("link")),
        **{option: options.get(option) for option in same},
    )


def _store(backend: Any, request: Context, reason: TaskSkipped) -> None:
    backend.store_result(request.id, reason, states.REVOKED, request=request)
    if request.chord:
        backend.on_chord_part_return(request, states.REVOKED, reason)


def _tasks_in(signature: Any) -> Iterator[Context]:
    """Each task in a signature that is not sent, if it has an id to wait for."""
    kind = signature.get("subtask_type")
    kwargs = signature.get("kwargs") or {}
    options = signature.get("options") or {}
    if kind in ("chain", "group"):
        yield from _tasks_in_all(kwargs.get("tasks"))
    elif kind == "chord":
        for context in _tasks_in_all(kwargs.get("header")):
            # The chord was never begun, so nothing counts the parts of its header.
            context.chord = None
            yield context
        yield from _tasks_in_all([kwargs.get("body")])
    elif options.get("task_id"):
        yield request_of(signature.get("task"), signature.get("args"), kwargs, options)
    yield from _tasks_in_all(options.get("link"))


def _tasks_in_all(signatures: Any) -> Iterator[Context]:
    if isinstance(signatures, dict):
        signatures = [signatures]
    members: Iterable[Any] = signatures or ()
    for signature in members:
        if signature is not None:
            yield from _tasks_in(signature)
