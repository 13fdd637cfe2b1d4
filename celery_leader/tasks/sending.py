"""Whether this process may send a leader-only task, and the result of a skipped send."""

from __future__ import annotations

from typing import Any

from celery import Celery, states, uuid
from celery.result import EagerResult

from celery_leader.core.events import Skipped
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.node_names import node_name
from celery_leader.runtime.settings import BEAT

from .marks import LeaderOnly
from .routing import installed
from .skipped import TaskSkipped, request_of, store_skipped


def may_send(app: Celery, options: LeaderOnly) -> bool:
    """Whether this process may send a task with these options now."""
    beliefs = runtime_of(app).beliefs
    if app.conf.task_always_eager:
        # No other process could run the task. Only a test can say that another one leads.
        staged = beliefs.is_staged(options.election)
        return not staged or beliefs.term(options.election) is not None
    if not installed(app):
        return True
    if beliefs.is_candidate(BEAT):
        # Beat's election decides, also in a beat that is embedded in a worker that follows.
        return beliefs.term(BEAT) is not None
    if options.send_from == "anywhere" or not beliefs.is_candidate(options.election):
        return True
    return beliefs.term(options.election) is not None


def skip_send(
    task: Any, bound: LeaderOnly, args: Any, kwargs: Any, options: dict[str, Any]
) -> EagerResult:
    """Skip a send: store the result for everybody who waits for it, and return it."""
    if task.typing and hasattr(task, "__header__"):
        task.__header__(*(args or ()), **(kwargs or {}))  # wrong arguments raise, as in a send
    app, runtime = task.app, runtime_of(task.app)
    task_id = options.get("task_id") or uuid()
    eager = app.conf.task_always_eager
    by_beat = runtime.beliefs.is_candidate(BEAT) and not eager
    election = BEAT if by_beat else bound.election
    parent = app.current_worker_task
    node = parent.request.hostname if parent else runtime.participation.node(election)
    node = node or node_name(election)
    reason = TaskSkipped(f"{node} does not lead {election!r} and did not send {task.name}")
    # Nobody waits for a send that beat or an eager process skips.
    if not (by_beat or eager):
        request = request_of(task.name, args, kwargs, {**options, "task_id": task_id})
        store_skipped(task, request, reason)
        runtime.observers.tell(Skipped(election, node, task.name, task_id, "sender"))
    return EagerResult(task_id, reason, states.REVOKED, name=task.name)
