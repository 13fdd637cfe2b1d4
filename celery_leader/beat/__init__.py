"""Schedulers for ``celery beat``: however many beats run, one of them dispatches.

With ``-S leader`` and a Redis broker, a due tick takes these steps:

1. ``ElectedScheduler.tick`` (elected) checks that this beat leads.
2. ``LeaderScheduler.lead`` (scheduler) chooses the tick.
3. ``Dispatcher.send`` (dispatch) has Celery and kombu make the message.
4. ``BufferingChannel`` (transport) holds the message back.
5. ``FencedDelivery`` (delivery) gives it to the script ``schedule_dispatch.lua``, which checks the
   lease, claims the tick and pushes the message.

With ``LeaderMixin``, step 2 is the scheduler's own ``tick``. It calls ``LeaderMixin.apply_async``
(mixin), which calls ``Dispatcher.send``.
"""

from __future__ import annotations

from .mixin import LeaderMixin, LeaderPersistentScheduler
from .scheduler import LeaderScheduler

__all__ = ("LeaderMixin", "LeaderPersistentScheduler", "LeaderScheduler")

# The register of candidates shows schedulers by the name that users know.
for _scheduler in (LeaderPersistentScheduler, LeaderScheduler):
    _scheduler.__module__ = __name__
