"""Leader-only tasks: how they are marked, where they are sent, who may run them.

Guaranteed: a leader-only task is sent to its leader's queue, and its body starts
only where its election is led at that moment; elsewhere it is handed to the leader
queue (or skipped, where asked). Not guaranteed: that a body still running when
leadership is lost did not overlap with its successor's; the body has
``check_leader()`` and ``current_term()`` for that.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from celery import Celery, Task, _state, signals, states, uuid
from celery.app.task import Context
from celery.exceptions import Ignore
from celery.local import PromiseProxy, Proxy
from celery.result import EagerResult
from celery.utils.functional import maybe_list
from celery.utils.imports import symbol_by_name
from celery.utils.quorum_queues import detect_quorum_queues
from kombu import Exchange, Queue
from kombu.common import maybe_declare
from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE
from kombu.utils.compat import detect_environment

from celery_leader.core.events import Skipped
from celery_leader.core.names import check_name
from celery_leader.errors import LeaderError, NotLeader
from celery_leader.runtime.leadership import (
    Leadership,
    current,
    leadership_of,
    node_name,
    worker_pid,
)
from celery_leader.runtime.settings import BEAT, WORKER

from .abort import stopped_when_lost
from .bodies import Body, running_body
from .skipped import TaskSkipped, store_skipped

_MARK = "__leader_only__"
_WATCHED = "__leader_abort__"
_BODY = "__leader_body__"
_SEND_FROM = ("anywhere", "leader")
_ON_FOLLOWER = ("forward", "skip")
_ON_DEPOSED = ("finish", "abort")
#: Celery's own tasks that run the bodies of another one, which their arguments name.
_MAPS = frozenset({"celery.map", "celery.starmap"})
#: What ``Task.apply_async`` takes after the arguments of the task, when not by name.
_IN_ORDER = ("task_id", "producer", "link", "link_error", "shadow")

_MOST_NAMED = 5  # tasks in one line of the log

logger = logging.getLogger(__name__)

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
    on_deposed: str = "finish"

    def __post_init__(self) -> None:
        check_name(self.election)
        if self.election == BEAT:
            raise LeaderError(
                "leader_only(election='beat'): beats elect their leader among themselves and run"
                " no tasks; name 'worker' or an election of your own"
            )
        for option, allowed in (
            ("send_from", _SEND_FROM),
            ("on_follower", _ON_FOLLOWER),
            ("on_deposed", _ON_DEPOSED),
        ):
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

    Store it with what you write, and refuse a write with a lower one. In a leader-only body
    of ``election``: the term that the body began with, and ``None`` once that is over, also
    when this process has won a later one.

    Raises:
        LeaderError: the current app knows no such election.
    """
    return _term_here(leadership_of(_state.get_current_app()), election)


def _term_here(leadership: Leadership, election: str) -> int | None:
    term = leadership.term(election)
    body = running_body(leadership, election)
    return term if body is None or body.term == term else None


def is_leader(election: str = WORKER) -> bool:
    """Whether this process leads ``election`` at this moment; no I/O.

    In a pool process: whether its worker does. In a leader-only body of ``election``: still
    with the term that the body began with.

    Raises:
        LeaderError: the current app knows no such election.
    """
    return current_term(election) is not None


def check_leader(election: str = WORKER) -> int:
    """The term this process leads ``election`` with at this moment; no I/O.

    Raises:
        NotLeader: it does not lead, or no longer with the term that the leader-only body
            began with in which this is asked.
        LeaderError: the current app knows no such election.
    """
    term = current_term(election)
    if term is None:
        raise NotLeader(_why_not(election))
    return term


def _why_not(election: str) -> str:
    leadership = leadership_of(_state.get_current_app())
    body, term = running_body(leadership, election), leadership.term(election)
    if body is None or body.term is None or term is None:
        return f"this process does not lead {election!r}"
    return (
        f"this process lost the lead of {election!r} with term {body.term}, which this body began"
        f" with, and won it again with term {term}"
    )


@contextlib.contextmanager
def leading(election: str = WORKER) -> Iterator[int]:
    """Run a block, or with ``@leading()`` a plain function, only where ``election`` is led.

    ::

        with leading() as term:
            write(rows, term=term)

    Asked at its start. A body that goes on after leadership was lost is not stopped:
    let it call ``check_leader()``, and fence what it writes by the term.

    Raises:
        NotLeader: this process does not lead, and nothing has been run.
        LeaderError: the current app knows no such election.
    """
    yield check_leader(election)


# -- marking ---------------------------------------------------------------------


@overload
def leader_only(target: T) -> T: ...


@overload
def leader_only(
    *, election: str = ..., send_from: str = ..., on_follower: str = ..., on_deposed: str = ...
) -> Callable[[T], T]: ...


def leader_only(
    target: Any = None,
    *,
    election: str = WORKER,
    send_from: str = "anywhere",
    on_follower: str = "forward",
    on_deposed: str = "finish",
) -> Any:
    """Have a task run on the leader only. Goes above or below ``@app.task``.

    The app must be ``install``-ed. Calling the task directly, ``task()``, just runs it.

    Args:
        election: whose leader runs it.
        send_from: ``"anywhere"``, or ``"leader"``: a candidate of the election that
            does not lead skips the send, and the task ends as one that was skipped.
        on_follower: what a follower does that receives it all the same:
            ``"forward"`` it to the leader queue under its own id, or ``"skip"`` it.
        on_deposed: what becomes of a running body when its worker stops leading:
            ``"finish"``, or ``"abort"``, which raises ``NotLeader`` in it at once and
            kills its pool process should it go on until the lease can pass to another.

    A skipped task ends in the state ``REVOKED``: ``get()`` raises ``TaskSkipped``.

    Raises:
        LeaderError: an option has a value it cannot have.
    """
    options = LeaderOnly(election, send_from, on_follower, on_deposed)

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
            raise LeaderError(
                f"leader_only cannot mark {target!r}: give it a task or its function, or derive"
                " the class from LeaderTask"
            )
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
        signals.celeryd_after_setup.connect(_tell_forgotten_install, weak=False)


def _tell_forgotten_install(instance: Any, **_: Any) -> None:
    """A worker starts: say at once what its leader-only tasks would fail with, one by one."""
    app = instance.app
    adopt_tasks(app)
    if not leadership_of(app).task_elections or installed(app):
        return
    names = sorted(name for name, task in app.tasks.items() if options_of(task) is not None)
    logger.error(
        "this worker takes part in no election, and leader-only tasks fail here (%s%s): call"
        " celery_leader.install(app) where the app is made",
        ", ".join(names[:_MOST_NAMED]),
        ", ..." if len(names) > _MOST_NAMED else "",
    )


def _adopt_finalized(sender: Celery, **_: Any) -> None:
    adopt_tasks(sender)


def _mark_task(task: Any, options: LeaderOnly) -> None:
    if type(task) is PromiseProxy:
        task = task._get_current_object()
    # The function of a decorated task may be that of other apps' tasks too, to be marked with
    # it; the method of a class may be inherited by a task that was not marked.
    decorated = hasattr(task, "_decorated")
    setattr(getattr(task.run, "__func__", task.run) if decorated else task, _MARK, options)
    _adopt(task, options)


def options_of(task: Any) -> LeaderOnly | None:
    """How ``task`` is bound to its leader, or ``None`` for an ordinary task."""
    for marked in (task, getattr(task, "run", None)):
        options: LeaderOnly | None = getattr(marked, _MARK, None)
        if options is not None:
            return options
    return task.leader_options() if isinstance(task, LeaderTask) else None


def options_for(task: Any, args: Any, kwargs: Any) -> LeaderOnly | None:
    """As ``options_of``, for one call: a map is bound to the leader of the task it maps."""
    if task.name not in _MAPS:
        return options_of(task)
    return options_of(task.app._tasks.get(_mapped(args, kwargs)))


def _mapped(args: Any, kwargs: Any) -> str | None:
    """The name of the task that a map with these arguments runs."""
    inner = (kwargs or {}).get("task") or next(iter(args or ()), None)
    name = inner.get("task") if isinstance(inner, dict) else inner
    return name if isinstance(name, str) else None


def adopt_tasks(app: Celery) -> None:
    """Make every marked task of ``app`` a leader-only task."""
    for proxy, options in list(_shared):
        with current(app), contextlib.suppress(KeyError):
            _mark_task(proxy._get_current_object(), options)
    for task in list(app.tasks.values()):
        options_ = options_of(task)
        if options_ is not None:
            _adopt(task, options_)
    for name in _MAPS:
        _guard(app.tasks[name])


def _adopt(task: Any, options: LeaderOnly) -> None:
    leadership_of(task.app).task_elections.add(options.election)
    if options.on_deposed == "abort" and not hasattr(task.run, _WATCHED):
        # As Celery's own autoretry_for does it; around that, so that it sees the error.
        task.run = _aborted_when_deposed(task, task.run, options.election)
        setattr(task.run, _WATCHED, True)
    _guard(task)


def _guard(task: Any) -> None:
    cls = task.__class__
    if not issubclass(cls, LeaderOnlyTask):
        # Of this one task; a subclass keeps the user's own overrides.
        attributes = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "own_strategy": cls.Strategy,
            "own_request": cls.Request,
        }
        task.__class__ = type(cls.__name__, (LeaderOnlyTask, cls), attributes)
    if not hasattr(task.run, _BODY):
        task.run = _body_of(task, task.run)
        setattr(task.run, _BODY, True)


def _body_of(task: Any, run: Callable[..., T]) -> Callable[..., T]:
    """``run``, which is known while it runs, with the term it began with."""

    @functools.wraps(run)
    def body(*args: Any, **kwargs: Any) -> T:
        options = options_for(task, args, kwargs)
        if options is None:
            return run(*args, **kwargs)  # a map of an ordinary task
        leadership = leadership_of(task.app)
        try:
            term = _term_here(leadership, options.election)
        except LeaderError:
            return run(*args, **kwargs)  # called where no worker could start
        return Body(leadership, options.election, term).run(lambda: run(*args, **kwargs))

    return body


def _aborted_when_deposed(task: Any, run: Callable[..., T], election: str) -> Callable[..., T]:
    @functools.wraps(run)
    def watched(*args: Any, **kwargs: Any) -> T:
        leadership = leadership_of(task.app)
        if task.request.called_directly or task.request.is_eager or leadership.always_leads():
            return run(*args, **kwargs)
        if detect_environment() != "default":
            return run(*args, **kwargs)  # the worker has said so
        term = _term_here(leadership, election)
        if term is None:
            raise NotLeading(f"{election} is not led here")
        with stopped_when_lost(
            lambda: leadership.valid_until(election, term),
            f"{election}: deposed, term {term}, while {task.name} ran",
            spare=leadership.settings.timing.margin / 2,
            process_is_ours=worker_pid() is not None,
        ):
            return run(*args, **kwargs)

    return watched


def installed(app: Celery) -> bool:
    """Whether ``install(app)`` was called, here or in the worker that spawned this process."""
    return isinstance(app.amqp_cls, RoutedAMQP)


class LeaderOnlyTask(Task):  # type: ignore[misc]
    """What is put in front of a marked task's own class."""

    abstract = True
    # Named, because only a worker needs what they import.
    Strategy = "celery_leader.worker.message_guard:leader_strategy"
    Request = "celery_leader.worker.message_guard:LeaderOnlyRequest"
    own_strategy: Any
    own_request: Any

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send the task, unless it is not for this process to send."""
        bound = options_for(self, args, kwargs)
        # A retry goes on with a task that was sent; to skip it would lose it.
        if bound is not None and not options.get("retries") and _holds_back(self.app, bound):
            named = dict(zip(_IN_ORDER, more, strict=False))
            return _not_sent(self, bound, args, kwargs, {**named, **options})
        # As it was given: an override of the user's own may name some of it only.
        return super().apply_async(args, kwargs, *more, **options)

    def signature_from_request(
        self,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: Any = None,
        **rest: Any,
    ) -> Any:
        """What a retry sends: to the leader queue, wherever this attempt came from."""
        context = request or self.request
        bound = options_for(self, context.args, context.kwargs)
        if bound is not None and installed(self.app) and not (queue or rest.get("exchange")):
            queue = leader_queue(self.app, bound.election)
        return super().signature_from_request(request, args, kwargs, queue, **rest)

    subtask_from_request = signature_from_request

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Refuse to start the body where its election is not led."""
        options = options_for(self, args, kwargs)
        # Asked for last, because it takes Celery as long as all the rest takes us.
        if options is not None and not starts(self.app, options) and not self.request.is_eager:
            if not installed(self.app):
                raise LeaderError(
                    f"task {self.name} is leader-only, but this app cannot elect a leader:"
                    " call celery_leader.install(app) where the app is made"
                )
            raise NotLeading(f"{options.election} is not led here")
        super().before_start(task_id, args, kwargs)


def starts(app: Celery, options: LeaderOnly) -> bool:
    """Whether a body may start in this process now."""
    if not installed(app):
        return False
    leadership = leadership_of(app)
    try:
        return leadership.term(options.election) is not None and not leadership.is_shut
    except LeaderError:
        return False  # no worker starts with what this is about, but apply() may be called


class LeaderTask(Task):  # type: ignore[misc]
    """The base class of leader-only tasks: ``@app.task(base=LeaderTask)`` is ``@leader_only``.

    The options of ``leader_only`` are its class attributes; ``@leader_only`` on such a
    task overrules them.
    """

    abstract = True
    election = WORKER
    send_from = "anywhere"
    on_follower = "forward"
    on_deposed = "finish"

    @classmethod
    def leader_options(cls) -> LeaderOnly:
        """How tasks of this class are bound to their leader.

        Raises:
            LeaderError: an option has a value it cannot have.
        """
        return LeaderOnly(cls.election, cls.send_from, cls.on_follower, cls.on_deposed)

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """Make the task of this class that ``app`` has been given a leader-only task.

        Raises:
            LeaderError: an option has a value it cannot have.
        """
        bound = super().bind(app)
        task = app._tasks.get(cls.name)
        if isinstance(task, cls):
            _watch_apps()
            _adopt(task, options_of(task) or cls.leader_options())
        return bound


def _holds_back(app: Celery, options: LeaderOnly) -> bool:
    leadership = leadership_of(app)
    if app.conf.task_always_eager:
        # There is nobody else who could run it; only a test says that another leads.
        return leadership.is_staged(options.election) and not leadership.term(options.election)
    if not installed(app):
        return False
    if leadership.is_candidate(BEAT):
        # The schedule decides, also in the beat that a following worker embeds.
        return leadership.term(BEAT) is None
    if options.send_from == "anywhere" or not leadership.is_candidate(options.election):
        return False
    return leadership.term(options.election) is None


def _not_sent(
    task: Any,
    bound: LeaderOnly,
    args: Any,
    kwargs: Any,
    options: dict[str, Any],
) -> EagerResult:
    """The result of a send that was skipped, stored for whoever else waits for it."""
    if task.typing and hasattr(task, "__header__"):
        task.__header__(*(args or ()), **(kwargs or {}))  # what is wrong is wrong everywhere
    task_id = options.get("task_id") or uuid()
    app = task.app
    eager = app.conf.task_always_eager
    beat = leadership_of(app).is_candidate(BEAT) and not eager
    election = BEAT if beat else bound.election
    parent = app.current_worker_task
    node = parent.request.hostname if parent else leadership_of(app).node(election)
    node = node or node_name(election)
    reason = TaskSkipped(f"{node} does not lead {election!r} and did not send {task.name}")
    if not (beat or eager):  # nobody else waits for what would not have been sent
        context = Context(
            id=task_id,
            task=task.name,
            args=args,
            kwargs=kwargs,
            group=options.get("group_id"),
            group_index=options.get("group_index"),
            chord=options.get("chord"),
            chain=options.get("chain"),
            callbacks=maybe_list(options.get("link")),
            ignore_result=options.get("ignore_result"),
            root_id=options.get("root_id"),
            parent_id=options.get("parent_id"),
        )
        store_skipped(task, context, reason)
        leadership_of(app).tell(Skipped(election, node, task.name, task_id, "sender"))
    return EagerResult(task_id, reason, states.REVOKED, name=task.name)


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
        if getattr(task, "name", name) in _MAPS:  # whose name here is that of the task it maps
            name, task = _mapped(args, kwargs) or "", None
        bound = options_of(task or self.app._tasks.get(name))
        if bound is None:
            return None
        queue = leader_queue(self.app, bound.election)
        # Named, since Celery forgets the queue of what waits for its time in RabbitMQ.
        return {"queue": queue, "declare": [queue]}

    def TaskConsumer(self, channel: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """A task consumer, made when the leaders' queues are there, too.

        Celery's delayed delivery binds each queue that the app knows, and fails for one that
        is not there.
        """
        consumer = super().TaskConsumer(channel, *args, **kwargs)  # type: ignore[misc]
        if detect_quorum_queues(self.app, consumer.connection.transport.driver_type)[0]:
            for queue in leader_queues(self.app):
                maybe_declare(queue, consumer.channel)
        return consumer


class DelayedQueue(Queue):  # type: ignore[misc]
    """A queue that gets what waited for its time in RabbitMQ, from its declaration on.

    Celery's workers bind the queues that they know when they start. Its sender may know an
    election that no running worker knows, and may be there before all workers.
    """

    def declare(self, nowait: bool = False, channel: Any = None) -> Any:
        """Declare it, and bind it to the exchange that Celery's delayed delivery ends in."""
        name = super().declare(nowait=nowait, channel=channel)
        channel = channel or self.channel
        if channel.connection.client.transport.driver_type == "amqp":
            Exchange(CELERY_DELAYED_DELIVERY_EXCHANGE, type="topic").declare(channel=channel)
            self.bind_to(CELERY_DELAYED_DELIVERY_EXCHANGE, f"#.{self.routing_key}", channel=channel)
        return name


def leader_queue(app: Celery, election: str) -> Queue:
    """The queue of the leader of ``election``: as in ``task_queues``, or like any new queue."""
    name = leadership_of(app).queue(election)
    queues = app.amqp.queues
    if name in queues:
        return queues[name]
    queue = queues.new_missing(name)
    if queue.max_priority is None:
        queue.max_priority = queues.max_priority
    if queue.exchange.type != "direct" and detect_quorum_queues(app, "amqp")[0]:
        queue = DelayedQueue(**queue.as_dict())
    return queue


def leader_queues(app: Celery) -> list[Queue]:
    """The queues of the leaders of all elections that run tasks."""
    return [leader_queue(app, name) for name in sorted(leadership_of(app).elections() - {BEAT})]


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
