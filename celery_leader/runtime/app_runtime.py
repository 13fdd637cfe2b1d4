"""One app's part in its elections, in this process: where everything else is found.

There is one ``AppRuntime`` for each app, kept beside the app and not on it. A forked child keeps
it, and starts with no thread, connection or candidate of its own.
"""

from __future__ import annotations

import os
import weakref

from celery import Celery

from .backlog import Backlog
from .beliefs import Beliefs
from .context import AppContext
from .node_names import NodeNames
from .observers import Observers
from .orders import Orders
from .participation import Participation
from .session import LeaseRedis


class AppRuntime(AppContext):
    """The app's context, and the objects that work with it, each with its own data.

    Attributes:
        beliefs: whether this process leads.
        participation: the elections it takes part in.
        node_names: the names of its candidates.
        observers: tells of events.
        orders: gives orders to the candidates of any process.
        redis: connections to the Redis that keeps the leases.
        backlogs: the leader queues that this process fetches from, by election.
        counts_backlogs: whether anybody wants to know how many messages wait in them.
    """

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self.node_names = NodeNames(self)
        self.observers = Observers(self)
        self.redis = LeaseRedis(self)
        self.beliefs = Beliefs(self)
        self.participation = Participation(
            self, self.beliefs, self.redis, self.observers, self.node_names
        )
        self.orders = Orders(self, self.redis)
        self.backlogs: dict[str, Backlog] = {}
        self.counts_backlogs = False


_runtimes: weakref.WeakKeyDictionary[Celery, AppRuntime] = weakref.WeakKeyDictionary()


def runtime_of(app: Celery) -> AppRuntime:
    """The one ``AppRuntime`` of ``app``, made at the first call."""
    runtime = _runtimes.get(app)
    if runtime is None:
        runtime = _runtimes.setdefault(app, AppRuntime(app))
    return runtime


def _after_fork_in_child() -> None:
    for runtime in list(_runtimes.values()):
        runtime.forks.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
