"""Leader-only tasks: how they are marked, where they are sent, who may run them.

Guaranteed: a leader-only task is sent to its leader's queue, and its body starts
only where its election is led at that moment; elsewhere it is handed to the leader
queue (or skipped, where asked). Not guaranteed: that a body still running when
leadership is lost did not overlap with its successor's; the body has
``check_leader()`` and ``current_term()`` for that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from celery import Celery, Task, _state, uuid
from celery.exceptions import Ignore
from celery.local import PromiseProxy, Proxy
from celery.result import EagerResult
from celery.utils.imports import symbol_by_name
from kombu import Queue

from .app import BEAT, WORKER, leadership_of
from .errors import LeaderError, NotLeader
from .lease import check_name

#: The state of a task that was not run because its sender or receiver did not lead.
SKIPPED = "SKIPPED"

_MARK = "__leader_only__"
_SEND_FROM = ("anywhere", "leader")
_ON_FOLLOWER = ("forward", "skip")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LeaderOnly:
    """How one task is bound to its leader.

    Raises:
        LeaderError: an option has a value it cannot have.
    """

    election: str = WORKER
    send_from: str = "anywhere"
    on_follower: str = "forward"

    def __post_init__(self) -> None:
        check_name(self.election)
        if self.election == BEAT:
            raise LeaderError(
                "leader_only(election='beat'): beats elect their leader among themselves and run"
                " no tasks; name 'worker' or an election of your own"
            )
        for option, allowed in (("send_from", _SEND_FROM), ("on_follower", _ON_FOLLOWER)):
            value = getattr(self, option)
            if value not in allowed:
                raise LeaderError(
                    f"leader_only({option}={value!r}): it must be"
                    f" {' or '.join(repr(name) for name in allowed)}"
                )


class NotLeading(Ignore):  # type: ignore[misc]
    """A leader-only body did not start in a pool process; MainProcess hands the message over."""


# -- for task and app code -------------------------------------------------------


def current_term(election: str = WORKER) -> int | None:
    """The term this process leads ``election`` with at this moment, or ``None``; no I/O.

    Store it with what you write, and refuse a write with a lower one.

    Raises:
        LeaderError: the current app knows no such election.
    """
    return leadership_of(_state.get_current_app()).term(election)


def is_leader(election: str = WORKER) -> bool:
    """Whether this process leads ``election`` at this moment; no I/O.

    In a pool process: whether its worker does.

    Raises:
        LeaderError: the current app knows no such election.
    """
    return leadership_of(_state.get_current_app()).term(election) is not None


def check_leader(election: str = WORKER) -> int:
    """The term this process leads ``election`` with at this moment; no I/O.

    Raises:
        NotLeader: it does not lead.
        LeaderError: the current app knows no such election.
    """
    term = current_term(election)
    if term is None:
        raise NotLeader(f"this process does not lead {election!r}")
    return term


# -- marking ---------------------------------------------------------------------


@overload
def leader_only(target: T) -> T: ...


@overload
def leader_only(
    *, election: str = ..., send_from: str = ..., on_follower: str = ...
) -> Callable[[T], T]: ...


def leader_only(
    target: Any = None,
    *,
    election: str = WORKER,
    send_from: str = "anywhere",
    on_follower: str = "forward",
) -> Any:
    """Have a task run on the leader only. Goes above or below ``@app.task``.

    The app must be ``install``-ed. Calling the task directly, ``task()``, just runs it.

    Args:
        election: whose leader runs it.
        send_from: ``"anywhere"``, or ``"leader"``: a candidate of the election that
            does not lead skips the send and gets a result whose state is ``SKIPPED``.
        on_follower: what a follower does that receives it all the same:
            ``"forward"`` it to the leader queue under its own id, or ``"skip"`` it,
            which acknowledges it and stores the state ``SKIPPED``.

    Raises:
        LeaderError: an option has a value it cannot have.
    """
    options = LeaderOnly(election, send_from, on_follower)

    def mark(target: Any) -> Any:
        _watch_apps()
        kind = type(target)  # a proxy lies about its __class__, and asking finalizes the app
        if kind is PromiseProxy:
            target.__then__(_mark_task, target, options)
        elif kind is Proxy:
            _shared.append((target, options))
        elif isinstance(target, Task):
            _mark_task(target, options)
        elif callable(target) and not isinstance(target, type):
            setattr(target, _MARK, options)
        else:
            raise LeaderError(f"leader_only cannot mark {target!r}: give it a task or its function")
        return target

    return mark if target is None else mark(target)


#: Tasks of every app, marked above ``@shared_task``: known by name only in an app.
_shared: list[tuple[Any, LeaderOnly]] = []
_watching = False


def _watch_apps() -> None:
    """From the first mark on, see to the leader-only tasks of every app that is finalized."""
    global _watching
    if not _watching:
        _watching = True
        _state.connect_on_app_finalize(
            lambda app: app.on_after_finalize.connect(_adopt_finalized, weak=False)
        )


def _adopt_finalized(sender: Celery, **_: Any) -> None:
    adopt_tasks(sender)


def _mark_task(task: Any, options: LeaderOnly) -> None:
    if type(task) is PromiseProxy:
        task = task._get_current_object()
    setattr(getattr(task.run, "__func__", task.run), _MARK, options)
    _adopt(task, options)


def options_of(task: Any) -> LeaderOnly | None:
    """How ``task`` is bound to its leader, or ``None`` for an ordinary task."""
    return getattr(getattr(task, "run", None), _MARK, None)


def adopt_tasks(app: Celery) -> None:
    """Make every marked task of ``app`` a leader-only task."""
    for proxy, options in list(_shared):
        with _current(app), contextlib.suppress(KeyError):
            _mark_task(proxy._get_current_object(), options)
    for task in list(app.tasks.values()):
        options_ = options_of(task)
        if options_ is not None:
            _adopt(task, options_)


@contextlib.contextmanager
def _current(app: Celery) -> Iterator[None]:
    before = _state.get_current_app()
    app.set_current()
    try:
        yield
    finally:
        before.set_current()


def _adopt(task: Any, options: LeaderOnly) -> None:
    cls = task.__class__
    leadership_of(task.app).task_elections.add(options.election)
    if not issubclass(cls, LeaderOnlyTask):
        # The class was made for this one task; a subclass keeps the user's own overrides.
        attributes = {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "own_strategy": cls.Strategy,
            "own_request": cls.Request,
        }
        task.__class__ = type(cls.__name__, (LeaderOnlyTask, cls), attributes)


def installed(app: Celery) -> bool:
    """Whether ``install(app)`` was called, here or in the worker that spawned this process."""
    return isinstance(app.amqp_cls, RoutedAMQP)


class LeaderOnlyTask(Task):  # type: ignore[misc]
    """What is put in front of a marked task's own class."""

    abstract = True
    # Named, because only a worker needs what they import.
    Strategy = "celery_leader.bootstep:leader_strategy"
    Request = "celery_leader.bootstep:LeaderOnlyRequest"
    own_strategy: Any
    own_request: Any

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Send the task, unless it is not for this process to send."""
        # A retry goes on with a task that was sent; to skip it would lose it.
        if not options.get("retries") and _holds_back(self):
            return EagerResult(task_id or uuid(), None, SKIPPED, name=self.name)
        return super().apply_async(args, kwargs, task_id, *rest, **options)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Refuse to start the body where its election is not led."""
        options = options_of(self)
        assert options is not None
        if not self.request.is_eager:
            if not installed(self.app):
                raise LeaderError(
                    f"task {self.name} is leader-only, but this app cannot elect a leader:"
                    " call celery_leader.install(app) where the app is made"
                )
            if leadership_of(self.app).term(options.election) is None:
                raise NotLeading(f"{options.election} is not led here")
        super().before_start(task_id, args, kwargs)


def _holds_back(task: Any) -> bool:
    options = options_of(task)
    assert options is not None
    app = task.app
    if app.conf.task_always_eager or not installed(app):
        return False
    leadership = leadership_of(app)
    if leadership.is_candidate(BEAT):
        # The schedule decides, also in the beat that a following worker embeds.
        return leadership.term(BEAT) is None
    if options.send_from == "anywhere" or not leadership.is_candidate(options.election):
        return False
    return leadership.term(options.election) is None


def skip(task: Any, task_id: str, request: Any) -> None:
    """Store that the task was skipped."""
    if not task.ignore_result:
        task.backend.store_result(task_id, None, SKIPPED, request=request)


# -- routing ----------------------------------------------------------------------


class LeaderRouting:
    """Put before an app's own ``AMQP`` class: routes leader-only tasks to their queue.

    The route stands after the user's ``task_routes``, whatever they are set to and
    when; ``Task.queue`` would stand before them.
    """

    app: Celery
    _rtable: Any

    def flush_routes(self) -> None:
        """Prepare the routing table, with the leader's route as the last."""
        super().flush_routes()  # type: ignore[misc]
        self._rtable = [*self._rtable, self._route]

    def _route(
        self, name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any = None, **_: Any
    ) -> dict[str, Any] | None:
        if options.get("queue") or options.get("exchange"):
            return None
        bound = options_of(task or self.app._tasks.get(name))
        return None if bound is None else {"queue": leader_queue(self.app, bound.election)}


def leader_queue(app: Celery, election: str) -> Queue:
    """The queue of the leader of ``election``: as in ``task_queues``, or like any new queue."""
    name = leadership_of(app).queue(election)
    queues = app.amqp.queues
    if name in queues:
        return queues[name]
    queue = queues.new_missing(name)
    if queue.max_priority is None:
        queue.max_priority = queues.max_priority
    return queue


class RoutedAMQP:
    """Makes an app's ``AMQP`` object; goes with the app to a pool process that is spawned.

    Args:
        base: the app's own ``AMQP`` class, or its name.
    """

    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(self, app: Celery) -> Any:
        """An object of the app's own class that routes leader-only tasks to their queue."""
        return routing_class(symbol_by_name(self.base))(app=app)


def routing_class(base: Any) -> Any:
    """``base``, an ``AMQP`` class, that routes leader-only tasks to their queue."""
    if issubclass(base, LeaderRouting):
        return base
    return type(base.__name__, (LeaderRouting, base), {"__module__": base.__module__})
