"""The one answer to "may a leader-only body start here, now?".

``admission`` is asked when a worker receives a message, when it gives a request to its pool,
when a pool process starts the body, and when a worker decides whether to consume a leader queue.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery import Celery
from celery.exceptions import Ignore

from celery_leader.errors import LeaderError
from celery_leader.runtime.app_runtime import runtime_of

from .routing import installed


class NotLeading(Ignore):  # type: ignore[misc]
    """A leader-only body did not start.

    Celery stores no result for an ``Ignore``; the worker's main process hands the message over.
    """


@dataclass(frozen=True, slots=True)
class Admission:
    """What this process may do with leader-only messages of one election at this moment.

    Attributes:
        leads: this process, or the worker it belongs to, leads the election.
        steps_down: this worker gives the lease up as soon as no leader-only body runs here, and
            starts no more of them. Pool processes do not know it.
        shuts_down: this worker is shutting down.
    """

    leads: bool
    steps_down: bool
    shuts_down: bool

    @property
    def takes(self) -> bool:
        """Whether a received message may wait here for its turn.

        Also during a shutdown. A message that waits then goes back to the front of its queue,
        in order.
        """
        return self.leads and not self.steps_down

    @property
    def starts(self) -> bool:
        """Whether a body may start here.

        Also while the worker steps down. It keeps the lease until the bodies in its pool have
        ended.
        """
        return self.leads and not self.shuts_down

    @property
    def skips(self) -> bool:
        """Whether a refused message may be skipped, if its task asks for that.

        A worker that shuts down or steps down hands the message over instead: it is no follower
        that received a stray message.
        """
        return not self.steps_down and not self.shuts_down


_NOT_HERE = Admission(leads=False, steps_down=False, shuts_down=False)


def admission(app: Celery, election: str) -> Admission:
    """What this process may do with leader-only messages of ``election`` now; no I/O."""
    if not installed(app):
        return _NOT_HERE
    runtime = runtime_of(app)
    try:
        leads = runtime.beliefs.term(election) is not None
    except LeaderError:  # no worker starts with such settings, but apply() may be called
        return _NOT_HERE
    step = runtime.participation.stepping_down.get(election)
    steps_down = step is not None and step.closing
    # After the term: asking for it tells a pool process which worker's shutdown to look at.
    return Admission(leads, steps_down, runtime.beliefs.shutting_down)
