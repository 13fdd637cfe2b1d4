"""Consumes the leader queues of the elections that this worker leads.

Guaranteed: only a leader consumes its leader queue, also after a reconnect. Where the leases are
on a Redis broker, its messages are fetched, see ``fetching.py``; any other broker delivers them
as it delivers others. Not guaranteed: that no leader-only message reaches a follower; one that
does is handed over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kombu.common import ignore_errors, maybe_declare
from redis.exceptions import RedisError, ResponseError

from celery_leader.compat.kombu import credit_left, keeps_lists, leave_out, share_credit
from celery_leader.errors import LeaderError
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.backlog import Backlog
from celery_leader.runtime.local_candidate import LocalCandidate
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import BEAT
from celery_leader.tasks.admission import admission
from celery_leader.tasks.marks import options_of
from celery_leader.tasks.routing import leader_queue, leader_queues

from .fetching import Fetcher
from .giving_back import give_back_all, give_back_fetched, running_tags
from .nudge import Nudge, nudge_of
from .state import WorkerState
from .waiting_count import WaitingCount

logger = get_logger(__name__)


def fetches_from(runtime: AppRuntime, connection: Any) -> bool:
    """Whether messages of leader queues are fetched from the broker of ``connection``."""
    return runtime.redis.is_consumed_broker and keeps_lists(connection.transport)


def check_limits(runtime: AppRuntime, elections: Collection[str]) -> None:
    """Refuse tasks of these elections with ``max_running`` where it cannot be kept.

    Raises:
        LeaderError: there is such a task, and leader queues are not fetched from.
    """
    if runtime.always_leads():
        return
    with runtime.app.connection_for_read() as connection:
        if fetches_from(runtime, connection):
            return
    bound = {name: options_of(task) for name, task in runtime.app.tasks.items()}
    limited = [
        name
        for name, options in sorted(bound.items())
        if options and options.max_running is not None and options.election in elections
    ]
    if limited:
        raise LeaderError(
            f"leader_only(max_running=...) of {', '.join(limited)} cannot be kept here: it needs"
            " the leases on the Redis that is the broker, so no leader_url and no other broker;"
            " leave max_running out, or change that"
        )


class LeaderQueues:
    """The leader queues from which one worker consumes.

    Args:
        runtime: the runtime of the worker's app.
        eligible: the elections in which the worker takes part.
        state: the state of the worker.
        candidates: the worker's candidates, by election, as soon as they have begun.
    """

    def __init__(
        self,
        runtime: AppRuntime,
        eligible: Sequence[str],
        state: WorkerState,
        candidates: Mapping[str, LocalCandidate],
    ) -> None:
        self._runtime = runtime
        self._eligible = eligible
        self._state = state
        self._candidates = candidates
        self._counts: dict[str, WaitingCount] = {}
        self._nudge: Nudge | None = None
        self._stopped = False
        # Celery must know the leader queues for what it does with all queues of an app, but must
        # not consume them by itself: ``_begin`` adds them to a leader's task consumer.
        queues = runtime.app.amqp.queues
        for queue in leader_queues(runtime.app):
            queues.add(queue)
        queues.deselect([runtime.queue(name) for name in runtime.elections()])

    def connected(self, c: Any) -> None:
        """Prepare the worker's new connection."""
        if c.connection.transport.driver_type == "amqp":
            # Declared now, and not when a message is handed over: RabbitMQ delivers more messages
            # while a declaration waits for its answer. Each would be handed over and declare too,
            # and py-amqp loses some of so many answers on one channel.
            for queue in leader_queues(c.app):
                maybe_declare(queue, c.task_consumer.channel)
        fetches = fetches_from(self._runtime, c.connection)
        if fetches:
            self._prepare_to_fetch(c)
        # An event loop looks at its channels again when it is woken.
        if self._eligible and not (fetches and c.hub is not None):
            self._nudge = nudge_of(c, self._runtime.settings.namespace)

    def _prepare_to_fetch(self, c: Any) -> None:
        runtime, fetchers = self._runtime, self._state.fetchers
        channel = c.task_consumer.channel
        staged = {name for name in runtime.elections() if runtime.beliefs.is_staged(name)}
        fetched = runtime.elections() - staged - {BEAT}
        leave_out(channel, {runtime.queue(name) for name in fetched})

        def held() -> int:
            return sum(fetcher.held for fetcher in fetchers.values())

        share_credit(channel, held)
        for election in fetched.intersection(self._eligible):
            if election not in fetchers:
                fetchers[election] = Fetcher(
                    runtime,
                    election,
                    self._candidates,
                    self._state,
                    lambda: credit_left(self._state.task_consumer.channel, held()),
                    lambda: running_tags(self._state),
                )
            if election not in self._counts:
                self._measure(election, fetchers[election])
            fetchers[election].connected(c.task_consumer)
            give_back_fetched(self._state, election)

    def _measure(self, election: str, fetcher: Fetcher) -> None:
        """Have metrics tell of a leader queue."""
        count = WaitingCount(self._runtime, self._state, fetcher)
        self._counts[election] = count
        self._runtime.backlogs[election] = Backlog(
            self._state.consumer.hostname, lambda: fetcher.held, lambda: count.waiting
        )

    def update(self) -> None:
        """Consume the leader queues of the led elections, no others; in the worker's thread."""
        if self._state.task_consumer is None:
            return
        for election in self._eligible:
            wanted = not self._stopped and admission(self._runtime.app, election).takes
            if wanted != self.consumes(election):
                (self._begin if wanted else self._end)(election)

    def consumes(self, election: str) -> bool:
        """Whether the worker consumes from the leader queue of ``election``.

        Celery's consumer is asked, since remote control and the message guard change it too.
        """
        task_consumer, fetcher = self._state.task_consumer, self._state.fetchers.get(election)
        queue = self._runtime.queue(election)
        if fetcher is not None and not fetcher.fetches:
            return False
        return task_consumer is not None and bool(task_consumer.consuming_from(queue))

    def _begin(self, election: str) -> None:
        queue = leader_queue(self._runtime.app, election)
        fetcher = self._state.fetchers.get(election)
        try:
            self._state.task_consumer.add_queue(queue)
            self._state.task_consumer.consume()
        except ResponseError as exc:
            if fetcher is None:
                raise
            fetcher.failed(exc)
            return
        if fetcher is not None:
            fetcher.begin()
            self._counts[election].begin()
        logger.info("%s: consuming from %s", election, queue.name)
        if self._nudge is not None:
            self._nudge.send()

    def _end(self, election: str) -> None:
        queue = self._runtime.queue(election)
        self._state.task_consumer.cancel_by_queue(queue)
        fetcher = self._state.fetchers.get(election)
        if fetcher is not None:
            fetcher.end()
            self._counts[election].end()
        if election in self._runtime.participation.stepping_down:
            give_back_all(self._state, [election])
        else:
            give_back_fetched(self._state, election)
        logger.info("%s: no longer consuming from %s", election, queue)

    def interrupt_pop(self) -> None:
        """End the wait of a worker with greenlets, which has no event loop; in any greenlet."""
        if self._state.consumer.hub is None and self._nudge is not None:
            ignore_errors(self._state.consumer, self._nudge.send)

    def stop(self) -> None:
        """A shutdown begins: stop consuming from leader queues."""
        c = self._state.consumer
        if self._nudge is not None:
            ignore_errors(c, self._nudge.finish_pop)
        self._stopped = True
        ignore_errors(c, self.update)

    def remove(self) -> None:
        """The worker ends: leave nothing behind in Redis."""
        for fetcher in self._state.fetchers.values():
            with contextlib.suppress(RedisError, OSError):
                fetcher.finish()
        if self._nudge is not None:
            self._nudge.remove()
