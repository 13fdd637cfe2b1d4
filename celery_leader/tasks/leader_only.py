"""``@leader_only`` and ``LeaderTask``: how a task becomes a leader-only task.

The decorator marks a task or its function. The mark takes effect when the app is finalized: the
app learns the task's election, and the task's class is guarded. On a finished task it takes
effect at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

from celery import Celery, Task, signals
from celery.local import PromiseProxy, Proxy

from celery_leader.compat.celery import on_every_finalized_app, task_named, unproxied
from celery_leader.errors import LeaderError
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.apps import current
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import WORKER

from .guarded_task import abort_when_deposed, guard
from .marks import MAPS, LeaderOnly, mark, options_of
from .routing import installed

_MOST_NAMED = 5  # tasks in one line of the log

logger = get_logger(__name__)

T = TypeVar("T")


@overload
def leader_only(target: T) -> T: ...


@overload
def leader_only(
    *,
    election: str = ...,
    send_from: str = ...,
    on_follower: str = ...,
    on_deposed: str = ...,
    max_running: int | None = ...,
    on_busy: str = ...,
) -> Callable[[T], T]: ...


def leader_only(
    target: Any = None,
    *,
    election: str = WORKER,
    send_from: str = "anywhere",
    on_follower: str = "forward",
    on_deposed: str = "finish",
    max_running: int | None = None,
    on_busy: str = "wait",
) -> Any:
    """Run a task on the leader only. The decorator goes above or below ``@app.task``.

    It must go above if the task's module is imported after the app was finalized. Below, it marks
    only the function, and Celery tells nobody of a task that a finalized app makes from it: until
    a worker or a beat starts, this process sends the task as if ``send_from`` were not set.

    The app must be ``install``-ed. Calling the task directly, ``task()``, just runs it.

    Args:
        election: the election whose leader runs the task.
        send_from: ``"anywhere"``, or ``"leader"``: a candidate of the election that does not
            lead skips the send.
        on_follower: what a follower does that receives the task: ``"forward"`` it to the
            leader queue under its own id, or ``"skip"`` it.
        on_deposed: what happens to a running body when its worker stops leading:
            ``"finish"``, or ``"abort"``: ``NotLeader`` is raised in the body at once. If it
            goes on, its pool process is killed before the lease can expire.
        max_running: how many bodies of the task may run at once, counting those that still run on
            an earlier leader; ``None``: as many as the worker's pool runs. Needs the leases on the
            Redis that is the broker.
        on_busy: what happens to a message while so many run: it has to ``"wait"``, and goes on in
            its order, or the leader will ``"skip"`` it.

    A skipped task ends in the state ``REVOKED``: ``get()`` raises ``TaskSkipped``.

    Raises:
        LeaderError: an option has a value that it cannot have.
    """
    options = LeaderOnly(election, send_from, on_follower, on_deposed, max_running, on_busy)

    decorate = partial(_decorate, options)
    return decorate if target is None else decorate(target)


class LeaderTask(Task):  # type: ignore[misc]
    """The base class of leader-only tasks.

    ``@app.task(base=LeaderTask)`` does the same as ``@leader_only``. Class attributes are the
    options; ``@leader_only`` on such a task overrules them.
    """

    abstract = True
    election = WORKER
    send_from = "anywhere"
    on_follower = "forward"
    on_deposed = "finish"
    max_running: int | None = None
    on_busy = "wait"

    @classmethod
    def leader_options(cls) -> LeaderOnly:
        """The leader-only options of the tasks of this class.

        Raises:
            LeaderError: an option has a value that it cannot have.
        """
        return LeaderOnly(
            cls.election,
            cls.send_from,
            cls.on_follower,
            cls.on_deposed,
            cls.max_running,
            cls.on_busy,
        )

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """Bind the class to ``app``, and make its task there a leader-only task.

        Raises:
            LeaderError: an option has a value that it cannot have.
        """
        bound = super().bind(app)
        task = task_named(app, cls.name)
        if isinstance(task, cls):
            _watch_apps()
            _adopt(task, options_of(task) or cls.leader_options())
        return bound


# -- from the mark to the task --------------------------------------------------------

#: Tasks marked above ``@shared_task``. Every app has its own task of that name, and the proxy
#: stands for the task of the current app.
_shared: list[tuple[Any, LeaderOnly]] = []
_watching = False


def _decorate(options: LeaderOnly, target: Any) -> Any:
    _watch_apps()
    kind = type(target)  # a proxy lies about its __class__, and asking finalizes the app
    if kind is PromiseProxy:
        target.__then__(_mark_task, target, options)
    elif kind is Proxy:
        _shared.append((target, options))
    elif isinstance(target, Task):
        _mark_task(target, options)
    elif callable(target) and not isinstance(target, type):
        mark(target, options)
    else:
        raise LeaderError(
            f"leader_only cannot mark {target!r}: give it a task or its function, or derive"
            " the class from LeaderTask"
        )
    return target


def _mark_task(task: Any, options: LeaderOnly) -> None:
    if type(task) is PromiseProxy:
        task = unproxied(task)
    # A decorated function is marked itself, and with it the tasks of other apps that share it.
    # The method of a class is not marked: a task that inherits it need not be leader-only.
    decorated = hasattr(task, "_decorated")
    mark(getattr(task.run, "__func__", task.run) if decorated else task, options)
    _adopt(task, options)


def _adopt(task: Any, options: LeaderOnly) -> None:
    runtime_of(task.app).task_elections.add(options.election)
    if options.on_deposed == "abort":
        abort_when_deposed(task, options.election)
    guard(task)


def adopt_tasks(app: Celery) -> None:
    """Make every marked task of ``app`` a leader-only task."""
    for proxy, options in list(_shared):
        with current(app), contextlib.suppress(KeyError):
            _mark_task(unproxied(proxy), options)
    for task in list(app.tasks.values()):
        bound = options_of(task)
        if bound is not None:
            _adopt(task, bound)
    for name in MAPS:
        guard(app.tasks[name])


def _watch_apps() -> None:
    """From the first mark on, adopt the marked tasks of every app that is finalized."""
    global _watching
    if not _watching:
        _watching = True
        on_every_finalized_app(
            lambda app: app.on_after_finalize.connect(_adopt_finalized, weak=False)
        )
        signals.celeryd_after_setup.connect(_report_missing_install, weak=False)


def _adopt_finalized(sender: Celery, **_: Any) -> None:
    adopt_tasks(sender)


def _report_missing_install(instance: Any, **_: Any) -> None:
    """Log at a worker's start that its leader-only tasks will fail, before each of them does."""
    app = instance.app
    adopt_tasks(app)
    if not runtime_of(app).task_elections or installed(app):
        return
    names = sorted(name for name, task in app.tasks.items() if options_of(task) is not None)
    logger.error(
        "this worker takes part in no election, and leader-only tasks fail here (%s%s): call"
        " celery_leader.install(app) where the app is made",
        ", ".join(names[:_MOST_NAMED]),
        ", ..." if len(names) > _MOST_NAMED else "",
    )
