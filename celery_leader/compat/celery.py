"""Private names of Celery that every process may need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from billiard.process import current_process
from celery import Celery, _state
from celery.local import Proxy

from . import attribute


def worker_pid() -> int | None:
    """The process id of the worker whose pool process or embedded beat this process is.

    billiard, Celery's ``multiprocessing``, has no public name for it.
    """
    pid: int | None = getattr(current_process(), "_parent_pid", None)
    return pid


def task_named(app: Celery, name: Any) -> Any:
    """The task called ``name``, or ``None``.

    ``app.tasks`` would finalize the app, which its owner may not have finished.
    """
    return attribute(app, "_tasks", "find a task without finalizing the app").get(name)


def unproxied(target: Any) -> Any:
    """``target``, or the object that it stands for if it is one of Celery's proxies.

    ``isinstance`` would look behind the proxy, and make a task too early.
    """
    if issubclass(type(target), Proxy):
        return attribute(target, "_get_current_object", "find what a proxy stands for")()
    return target


def current_app() -> Celery:
    """The current app itself; ``celery.current_app`` is a proxy."""
    return attribute(_state, "get_current_app", "find the current app")()


def is_default_app(app: Celery) -> bool:
    """Whether Celery made ``app`` itself because nobody named one."""
    return app is attribute(_state, "default_app", "know that no app is named")


def on_every_finalized_app(call: Callable[[Celery], object]) -> None:
    """Have ``call`` called with every app when it is finalized; apps have no public signal."""
    connect = attribute(_state, "connect_on_app_finalize", "find the leader-only tasks of each app")
    connect(call)


@contextlib.contextmanager
def awaiting_no_results() -> Iterator[None]:
    """While open, messages are sent without a subscription to their results.

    Nobody in a beat waits for results. If the result backend is away, each send with a
    subscription blocks for 20 seconds and then fails for good.
    """
    why = "send without waiting for the result backend"
    set_blocked = attribute(_state, "_set_task_join_will_block", why)
    before = attribute(_state, "task_join_will_block", why)()
    set_blocked(True)
    try:
        yield
    finally:
        set_blocked(before)


def add_last_route(amqp: Any, route: Callable[..., Any]) -> None:
    """Have ``route`` asked after the user's own routes, however ``task_routes`` is changed."""
    table = attribute(amqp, "_rtable", "route leader-only tasks after the user's own routes")
    amqp._rtable = [*table, route]


def route_anew(amqp: Any) -> None:
    """Have the routing table made again at the next use."""
    attribute(amqp, "_rtable", "make the routing table again")
    amqp._rtable = None
    vars(amqp).pop("router", None)


def set_class(target: Any, cls: type) -> None:
    """Make ``target``, an object that Celery has made already, an instance of ``cls``.

    Celery looks for a task's ``before_start`` on its class, and keeps the ``AMQP`` object that it
    has. Neither can be given another class in a public way.
    """
    target.__class__ = cls
