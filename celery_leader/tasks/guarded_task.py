"""The class that is put in front of a leader-only task's own class.

Guaranteed: a body starts only where its election is led at that moment. Not guaranteed: that
a body which outlives its leadership does not overlap with a body on the next leader. Such a
body can ask ``check_leader()`` and ``current_term()``.
"""

from __future__ import annotations

from typing import Any

from celery import Task

from celery_leader.compat.celery import set_class
from celery_leader.errors import LeaderError

from .abort import aborted_when_deposed
from .admission import NotLeading, admission
from .bodies import as_body
from .marks import options_for
from .routing import installed, leader_queue
from .sending import may_send, skip_send

_BODY = "__leader_body__"
_WATCHED = "__leader_abort__"
#: The parameters of ``Task.apply_async`` after ``args`` and ``kwargs``, in order.
_IN_ORDER = ("task_id", "producer", "link", "link_error", "shadow")


class GuardedTask(Task):  # type: ignore[misc]
    """Sends a leader-only task only where it may be sent, and starts it only where it may start."""

    abstract = True
    # Given by name, because only a worker needs to import them.
    Strategy = "celery_leader.worker.message_guard:leader_strategy"
    Request = "celery_leader.worker.message_guard:LeaderOnlyRequest"
    own_strategy: Any
    own_request: Any

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send the task, or skip the send where this process must not send it."""
        bound = options_for(self, args, kwargs)
        # A retry continues a task that was sent; skipping it would lose the task.
        if bound is not None and not options.get("retries") and not may_send(self.app, bound):
            named = dict(zip(_IN_ORDER, more, strict=False))
            return skip_send(self, bound, args, kwargs, {**named, **options})
        # Passed on as given: a user's own override may not name every argument.
        return super().apply_async(args, kwargs, *more, **options)

    def signature_from_request(
        self,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: Any = None,
        **rest: Any,
    ) -> Any:
        """The signature that a retry sends.

        It goes to the leader queue, whatever queue this attempt came from, unless the caller
        names a queue or an exchange.
        """
        context = request or self.request
        bound = options_for(self, context.args, context.kwargs)
        if bound is not None and installed(self.app) and not (queue or rest.get("exchange")):
            queue = leader_queue(self.app, bound.election)
        return super().signature_from_request(request, args, kwargs, queue, **rest)

    subtask_from_request = signature_from_request

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Refuse to start the body where its election is not led."""
        options = options_for(self, args, kwargs)
        # ``is_eager`` comes last: Celery takes longer to answer it than we take for the rest.
        if (
            options is not None
            and not admission(self.app, options.election).starts
            and not self.request.is_eager
        ):
            if not installed(self.app):
                raise LeaderError(
                    f"task {self.name} is leader-only, but this app cannot elect a leader:"
                    " call celery_leader.install(app) where the app is made"
                )
            raise NotLeading(f"{options.election} is not led here")
        super().before_start(task_id, args, kwargs)


def guard(task: Any) -> None:
    """Put ``GuardedTask`` in front of the class of ``task``, and make its body a ``Body``."""
    cls = task.__class__
    if not issubclass(cls, GuardedTask):
        # A class for this one task; as a subclass it keeps the user's own overrides.
        attributes = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "own_strategy": cls.Strategy,
            "own_request": cls.Request,
        }
        set_class(task, type(cls.__name__, (GuardedTask, cls), attributes))
    if not hasattr(task.run, _BODY):
        task.run = as_body(task, task.run)
        setattr(task.run, _BODY, True)


def abort_when_deposed(task: Any, election: str) -> None:
    """Have the body of ``task`` aborted when its worker stops leading."""
    if not hasattr(task.run, _WATCHED):
        # ``autoretry_for`` has wrapped ``run`` before, so it sees the error that aborts the body.
        task.run = aborted_when_deposed(task, task.run, election)
        setattr(task.run, _WATCHED, True)
