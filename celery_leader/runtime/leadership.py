"""One app's part in its elections, in this process: where everything else is found.

There is one ``Leadership`` for each app, kept beside the app and not on it. A forked child keeps
it, and starts with no thread, connection or campaign of its own.
"""

from __future__ import annotations

import os
import weakref

from celery import Celery

from .beliefs import Beliefs
from .candidacies import Candidacies
from .context import AppContext
from .identity import NodeNames
from .observers import Observers
from .orders import Orders
from .session import LeaseRedis


class Leadership(AppContext):
    """The app's context, and the objects that work with it, each with its own data.

    Attributes:
        beliefs: whether this process leads.
        candidacies: the elections it takes part in.
        node_names: the names of its candidates.
        observers: tells of events.
        orders: gives orders to the candidates of any process.
        redis: connections to the Redis that keeps the leases.
    """

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self.node_names = NodeNames(self)
        self.observers = Observers(self)
        self.redis = LeaseRedis(self)
        self.beliefs = Beliefs(self)
        self.candidacies = Candidacies(
            self, self.beliefs, self.redis, self.observers, self.node_names
        )
        self.orders = Orders(self, self.redis)


_leaderships: weakref.WeakKeyDictionary[Celery, Leadership] = weakref.WeakKeyDictionary()


def leadership_of(app: Celery) -> Leadership:
    """The one ``Leadership`` of ``app``, made at the first call."""
    leadership = _leaderships.get(app)
    if leadership is None:
        leadership = _leaderships.setdefault(app, Leadership(app))
    return leadership


def _after_fork_in_child() -> None:
    for leadership in list(_leaderships.values()):
        leadership.forks.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
