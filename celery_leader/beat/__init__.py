"""Schedulers for ``celery beat``: however many beats run, one of them dispatches.

The way of a due tick of ``-S leader``: ``ElectedScheduler.tick`` (elected),
``LeaderScheduler.lead`` (scheduler), ``Dispatcher.send`` (dispatch); then Celery and kombu make
the message, ``BufferingChannel`` (transport) holds it back, and ``FencedDelivery`` (delivery)
gives it to the one script that checks the lease, claims the tick and pushes it. With
``LeaderMixin`` the scheduler's own ``tick`` calls ``LeaderMixin.apply_async`` (mixin), which calls
``Dispatcher.send``.
"""

from __future__ import annotations

from .mixin import LeaderMixin, LeaderPersistentScheduler
from .scheduler import LeaderScheduler

__all__ = ("LeaderMixin", "LeaderPersistentScheduler", "LeaderScheduler")

# The register of candidates shows schedulers by the name that users know.
for _scheduler in (LeaderPersistentScheduler, LeaderScheduler):
    _scheduler.__module__ = __name__
