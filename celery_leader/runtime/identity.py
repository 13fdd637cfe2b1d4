"""The names of this process, its app and its nodes."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import socket
import threading
from collections.abc import Iterator
from typing import Any

from celery import Celery
from celery.utils.nodenames import host_format, nodename, nodesplit

from celery_leader.compat.celery import current_app, unproxied
from celery_leader.core.identity import identity
from celery_leader.core.names import check_node
from celery_leader.errors import LeaderError

from .command_line import beat_hostname
from .context import AppContext
from .settings import BEAT

#: Celery's own remote control gives this name to a beat that is given a host only.
_BEAT_NAME = "celerybeat"


class NodeNames:
    """Gives node names to the candidates of this process."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        # The parent's thread may have held the lock when it forked.
        context.forks.call_in_child(self._after_fork)

    def unused(self, role: str) -> str:
        """A node name that no other candidate of this process has; it is taken from now on."""
        name = node_name(role)
        with self._lock:
            number = 1
            while (node := name if number == 1 else f"{name}.{number}") in self._taken:
                number += 1
            self._taken.add(node)
        return node

    def of_beat(self) -> str:
        """The node name of this process's beat.

        It comes from ``celery beat --hostname``, where Celery has that option, or else from
        ``leader_beat_node``. Without both it contains the process id, because several beats may
        run on one host.
        """
        given = beat_hostname() or self._context.settings.beat_node
        if given is None:
            return self.unused(BEAT)
        name, host = nodesplit(given)
        return check_node(host_format(nodename(name or _BEAT_NAME, host)))

    def take(self, node: str) -> None:
        """Note that a candidate is called ``node``."""
        with self._lock:
            self._taken.add(node)

    def give_back(self, node: str) -> None:
        """Note that no candidate is called ``node`` any more."""
        with self._lock:
            self._taken.discard(node)

    def _after_fork(self, parent: int) -> None:
        self._lock = threading.Lock()


def node_name(role: str) -> str:
    """A node name for a process that is not a worker: several may run on one host."""
    return f"{role}@{socket.gethostname()}:{os.getpid()}"


def celery_app(app: Any, asking: str) -> Celery:
    """``app`` itself, also where a proxy such as ``celery.current_app`` stands for it.

    Raises:
        LeaderError: ``app`` is not a Celery app. The message names ``asking``, which was given it.
    """
    app = unproxied(app)
    if not isinstance(app, Celery):
        raise LeaderError(f"{asking} takes a Celery app, and {app!r} is none")
    return app


def app_identity(app: Celery) -> str:
    """A text that tells this app from another project's."""
    return identity(app.main or "", app.tasks)


@functools.cache
def versions() -> dict[str, str]:
    """The versions of the packages that decide how a candidate behaves."""
    packages = ("celery_leader", "celery", "redis")
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


@contextlib.contextmanager
def current(app: Celery) -> Iterator[None]:
    """While open, ``app`` is the current app."""
    before = current_app()
    app.set_current()
    try:
        yield
    finally:
        before.set_current()
