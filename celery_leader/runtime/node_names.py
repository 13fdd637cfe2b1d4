"""The node names of this process's candidates."""

from __future__ import annotations

import os
import socket
import threading

from celery.utils.nodenames import host_format, nodename, nodesplit

from celery_leader.core.names import check_node

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
