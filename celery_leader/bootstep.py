"""The worker's side: elections that live as long as the worker, and the leader queue.

A *consumer* step, started after ``Tasks`` at every (re)connect and shut down once,
after the pool has drained and before the broker connection is closed. Guaranteed:
a lost connection does not resign; from the beginning of a shutdown no leader-only body
starts, and each lease is kept until its last one is done, then passed on. Not
guaranteed: that no leader-only message reaches a follower; one that does is handed to
the leader queue as it came.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from queue import Empty
from typing import Any

from billiard import get_start_method
from celery import bootsteps, signals
from celery.utils.imports import instantiate, symbol_by_name
from celery.worker.request import Request
from celery.worker.state import active_requests, task_ready
from celery.worker.strategy import hybrid_to_proto2
from kombu import Consumer, Producer, Queue
from kombu.common import ignore_errors

from .app import leadership_of, refusing_clearly
from .election import Change, Deposed
from .runner import Campaign
from .settings import WORKER, check_elections, check_priority
from .skipped import TaskSkipped, store_skipped
from .tasks import (
    LeaderOnly,
    NotLeading,
    adopt_tasks,
    installed,
    leader_queue,
    options_for,
    options_of,
)

logger = logging.getLogger(__name__)

HOPS = "leader_hops"

_PATIENCE = 1.0  # seconds; until a message that could not be given away is tried again

#: The consumer of each app that runs a worker here, for what happens in a task's request.
_consumers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

_GLANCE = 0.01  # seconds between looks for a leader-only body that still runs in a shutdown

# Properties of a received message that belong to that delivery and not to the message.
_OF_DELIVERY = frozenset(
    {
        "delivery_info",
        "delivery_tag",
        "body_encoding",
        "application_headers",
        "content_type",
        "content_encoding",
        "headers",
    }
)


class LeaderStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Holds the worker's elections, and consumes the leader queue while leading."""

    label = "Leader"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(
        self,
        c: Any,
        no_candidate: bool = False,
        elections: str | None = None,
        leader_priority: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(c, **kwargs)
        adopt_tasks(c.app)
        self._leadership = leadership = leadership_of(c.app)
        with refusing_clearly():
            leadership.check()
            settings = leadership.settings
            named = settings.elections
            if elections is not None:
                named = check_elections(filter(None, elections.split(",")), "--elections")
            if leader_priority is not None:
                check_priority(leader_priority, "--leader-priority")
        self._priority = leader_priority
        self._eligible: list[str] = []
        if settings.candidate and not no_candidate:
            every = {WORKER, *leadership.task_elections}
            self._eligible = sorted(every if named is None else {*named})
        # Before the pool starts, so that its processes can read what is believed.
        if not forks(c.controller):
            leadership.share()
        leadership.allot(self._eligible)
        c.app.amqp.queues.deselect([leadership.queue(name) for name in leadership.elections()])
        self._campaigns: dict[str, Campaign] | None = None
        self._consuming: set[str] = set()
        self._consumer: Any = None
        self._closing = False
        self._gone = threading.Event()
        self._nudge: Nudge | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

        if self._eligible and getattr(c.pool, "is_green", False):
            _tell_what_cannot_be_aborted(c.app)

    def start(self, c: Any) -> None:
        """Connected, for the first time or again."""
        self._consumer = _consumers[c.app] = c
        self._keep_unknown(c)
        self._consuming.clear()
        _fetched.clear()  # of the connection before: the broker delivers them again
        self._leadership.follow(c.connection)
        if self._eligible:
            self._nudge = nudge_of(c, self._leadership.settings.namespace)
        if self._campaigns is None:
            self._campaigns = {}
            for name in self._eligible:
                campaign = self._leadership.campaign(
                    name, c.hostname, self._on_change, self._priority
                )
                if campaign is not None:
                    self._campaigns[name] = campaign
        self._consume_what_is_led()

    def _keep_unknown(self, c: Any) -> None:
        """Have leader-only tasks that this worker does not know put back, and not discarded.

        In a rolling deployment the leader may be older than the sender.
        """
        stock = c.__class__.on_unknown_task
        elections = {self._leadership.queue(name): name for name in self._leadership.elections()}
        told: set[str] = set()

        def on_unknown_task(body: Any, message: Any, exc: Exception) -> Any:
            name = message.headers.get("task")
            queue = (message.delivery_info or {}).get("routing_key")
            if name is None or queue not in elections:
                return stock(c, body, message, exc)
            if name not in told:
                told.add(name)
                logger.error(
                    "task %s is leader-only and unknown to this worker; it is put back into %s"
                    " until a leader knows it",
                    name,
                    queue,
                )
            return c.timer.call_after(_PATIENCE, self._put_back, (c, message, elections[queue]))

        c.on_unknown_task = on_unknown_task

    def _put_back(self, c: Any, message: Any, election: str) -> None:
        put(c.app, message, leader_queue(c.app, election))
        message.ack_log_error(logger, c.connection_errors)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Have the election thread able to wake the event loop."""
        hub.add_reader(self._wake_read, self._on_wake)

    def close(self, c: Any) -> None:
        """A shutdown begins: start nothing new, keep what is led while a body needs it."""
        self._leadership.shut()
        if self._nudge is not None:
            ignore_errors(c, self._nudge.finish_pop)
        self._closing = True
        ignore_errors(c, self._consume_what_is_led)
        give_all_back()
        threading.Thread(target=self._resign_in_time, name="leader-farewell", daemon=True).start()

    def _resign_in_time(self) -> None:
        # Nothing in Celery calls back for every end of a body while a pool drains.
        kept = dict(self._campaigns or {})
        while kept:
            busy = running_elections()
            for name in [name for name in kept if name not in busy]:
                self._leadership.resign(kept.pop(name))
            if self._gone.wait(_GLANCE):
                return

    def stop(self, c: Any) -> None:
        """The connection was lost, or a shutdown goes on: no reason to resign."""

    def shutdown(self, c: Any) -> None:
        """The pool has drained: give everything up."""
        self._gone.set()
        if not self._leadership.resign_all():
            logger.warning("the lease could not be given up in time; it will expire")
        if self._nudge is not None:
            self._nudge.remove()

    def terminate(self, c: Any) -> None:
        """As ``stop``."""

    def info(self, c: Any) -> dict[str, Any]:
        """What ``celery inspect stats`` says of this worker's elections."""
        return {"leader": {name: self._leadership.term(name) for name in self._eligible}}

    # -- from the election thread -----------------------------------------------

    def _on_change(self, change: Change) -> None:
        if self._closing and isinstance(change, Deposed):
            for campaign in (self._campaigns or {}).values():
                if campaign.term() is None:
                    self._leadership.resign(campaign)
        c = self._consumer
        if c is None:
            return
        if c.hub is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_write, b"!")
        else:
            # Pools of greenlets have no event loop; what they wait in is ended like any pop.
            c.call_soon(self._consume_what_is_led)
            if self._nudge is not None:
                with contextlib.suppress(*c.connection_errors):
                    self._nudge.send()

    # -- in the event loop --------------------------------------------------------

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        self._consume_what_is_led()

    def _consume_what_is_led(self) -> None:
        c = self._consumer
        if c is None or c.task_consumer is None:
            return
        for name in self._eligible:
            wanted = not self._closing and self._leadership.term(name) is not None
            if wanted == (name in self._consuming):
                continue
            queue = leader_queue(c.app, name)
            if wanted:
                c.task_consumer.add_queue(queue)
                c.task_consumer.consume()
                self._consuming.add(name)
                logger.info("%s: consuming from %s", name, queue.name)
                if self._nudge is not None:
                    self._nudge.send()
            else:
                c.task_consumer.cancel_by_queue(queue.name)
                self._consuming.discard(name)
                logger.info("%s: no longer consuming from %s", name, queue.name)


def forks(worker: Any) -> bool:
    """Whether the pool's processes will be forked; spawned ones inherit no memory."""
    chosen = getattr(worker, "pool_start_method", "fork")  # of Celery 5.7
    return chosen == "fork" and get_start_method() == "fork"


class Nudge:
    """Ends a blocking pop that is under way, so that the next one knows of a new queue.

    On Redis kombu waits in one ``BRPOP`` on all queues for a second. An empty message
    to a queue that only this worker consumes ends it at once, and needs no second
    connection. Its key is ``celery-leader:{namespace}:nudge:{node}``, removed at
    shutdown.
    """

    def __init__(self, channel: Any, name: str) -> None:
        self._name = name
        self._channel = channel
        self._consumer = Consumer(
            channel, [Queue(name, durable=False)], no_ack=True, on_message=lambda _: None
        )
        self._consumer.consume()
        self._producer = Producer(channel, auto_declare=False)

    def send(self) -> None:
        """End the pop that is under way."""
        self._producer.publish(
            b"", routing_key=self._name, content_type="application/data", content_encoding="binary"
        )

    def finish_pop(self) -> None:
        """End the pop that is under way for good, and take in what it has popped already.

        In a shutdown nobody reads from it until the pool has drained.
        """
        self.send()
        if getattr(self._channel, "_in_poll", None):
            with contextlib.suppress(Empty):
                self._channel._brpop_read()  # as kombu does when it closes the channel

    def remove(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(Exception):
            self._consumer.cancel()
            self._channel.queue_delete(self._name)


def nudge_of(c: Any, namespace: str) -> Nudge | None:
    """The nudge of a worker that consumes from Redis; other brokers deliver at once."""
    if c.connection.transport.driver_type != "redis":
        return None
    return Nudge(c.task_consumer.channel, f"celery-leader:{namespace}:nudge:{c.hostname}")


# -- receiving ------------------------------------------------------------------------


def leader_strategy(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:
    """A task strategy that lets a message in only where its election is led."""
    own_request = symbol_by_name(task.own_request)
    if own_request is not Request:
        task.__class__.Request = type("Request", (LeaderOnlyRequest, own_request), {})
    admit: Callable[..., Any] = instantiate(task.own_strategy, task, app, consumer)
    if not installed(app):
        return admit  # the body refuses to start, and says why
    leadership = leadership_of(app)

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        # A message is decoded only where its arguments tell: it may be for the leader to judge.
        options = options_of(task) or options_for(task, *_arguments(message))
        if options is None or leadership.term(options.election) is not None:
            return admit(message, body, ack, reject, callbacks)
        request = None
        if options.on_follower == "skip":
            request = _request_of(task, consumer, message, ack, reject)
        return hand_over_or_retry(
            task, options, message, request, lambda: ack(logger, consumer.connection_errors)
        )

    return on_message


def _arguments(message: Any) -> tuple[Any, Any]:
    payload = message.payload
    if "args" in payload:  # Celery's first message protocol
        return payload["args"], payload.get("kwargs")
    return payload[0], payload[1]


def _request_of(task: Any, consumer: Any, message: Any, ack: Any, reject: Any) -> Request:
    """The request that Celery's own strategy would have made of ``message``."""
    app = consumer.app
    body, headers, decoded, utc = message.body, message.headers, False, app.uses_utc_timezone()
    if "args" in message.payload:
        body, headers, decoded, utc = hybrid_to_proto2(message, message.payload)
    return Request(
        message,
        on_ack=ack,
        on_reject=reject,
        app=app,
        hostname=consumer.hostname,
        eventer=consumer.event_dispatcher,
        task=task,
        connection_errors=consumer.connection_errors,
        body=body,
        headers=headers,
        decoded=decoded,
        utc=utc,
    )


#: Leader-only requests whose body has not begun, in the order they came. Celery forgets
#: its own before a consumer step hears of a shutdown.
_fetched: dict[int, LeaderOnlyRequest] = {}


class LeaderOnlyRequest(Request):  # type: ignore[misc]
    """A request whose body may find, when it is about to start, that it must not."""

    given_back = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _fetched[id(self)] = self

    def on_accepted(self, *args: Any, **kwargs: Any) -> None:
        """The body begins."""
        super().on_accepted(*args, **kwargs)
        _fetched.pop(id(self), None)

    def acknowledge(self) -> None:
        """Done with, one way or another."""
        super().acknowledge()
        _fetched.pop(id(self), None)

    def reject(self, requeue: bool = False) -> None:
        """Done with here."""
        super().reject(requeue=requeue)
        _fetched.pop(id(self), None)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Hand the message over if the body did not start for want of leading."""
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if not isinstance(exc, NotLeading):
            return super().on_failure(exc_info, *args, **kwargs)
        task_ready(self)
        if self.given_back:
            return None
        options = options_for(self.task, self.args, self.kwargs)
        assert options is not None
        return hand_over_or_retry(self.task, options, self._message, self, self.acknowledge)


def hand_over_or_retry(
    task: Any,
    options: LeaderOnly,
    message: Any,
    request: Request | None,
    acknowledge: Callable[[], Any],
) -> None:
    """Hand a message over and acknowledge it; where Redis refuses, keep it and try again later.

    A full Redis, say, must not end the worker or lose the message.
    """
    try:
        skips = options.on_follower == "skip" and not leadership_of(task.app).is_shut
        if request is not None and skips:
            skip(options, request)
        else:
            hand_over(task, options, message)
    except Exception as exc:
        consumer = _consumers.get(task.app)
        if consumer is None or isinstance(exc, consumer.connection_errors):
            raise  # the consumer reconnects, and the message comes again
        logger.warning("%s: %s cannot be handed over yet: %s", options.election, task.name, exc)
        consumer.timer.call_after(
            _PATIENCE, hand_over_or_retry, (task, options, message, request, acknowledge)
        )
        return
    acknowledge()


def hand_over(task: Any, options: LeaderOnly, message: Any) -> None:
    """Give a message that this worker must not run to the leader queue.

    The caller acknowledges afterwards: should this worker die in between, the message
    comes twice, never not at all.
    """
    task_id = message.headers.get("id") or "?"
    queue = leader_queue(task.app, options.election)
    put(task.app, message, queue)
    logger.info(
        "%s: %s[%s] handed to %s, not leading", options.election, task.name, task_id, queue.name
    )


def skip(options: LeaderOnly, request: Request) -> None:
    """Have a message that this worker must not run end as a revoked one does.

    The caller acknowledges afterwards.
    """
    task = request.task
    reason = TaskSkipped(
        f"{request.hostname} does not lead {options.election!r} and did not run {task.name}"
    )
    context = request._context
    store_skipped(task, context, reason)
    logger.info("%s: %s[%s] skipped, not leading", options.election, task.name, request.id)
    how = {"terminated": False, "signum": None, "expired": False}
    request.send_event("task-revoked", **how)
    signals.task_revoked.send(sender=task, request=context, **how)


def put(app: Any, message: Any, queue: Queue) -> None:
    """Publish a received message again as it came, to ``queue``, with one more hop."""
    headers = dict(message.headers)
    headers[HOPS] = int(headers.get(HOPS) or 0) + 1
    # The body has been decompressed on the way in.
    compression = headers.pop("compression", None)
    properties = {k: v for k, v in message.properties.items() if k not in _OF_DELIVERY}
    if properties.get("expiration") is not None:
        # Milliseconds, as text, in the message; seconds where it is published.
        properties["expiration"] = int(properties["expiration"]) / 1000
    with _producer_for(app, message) as producer:
        producer.publish(
            message.body,
            exchange="",
            routing_key=queue.name,
            declare=[queue],
            headers=headers,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            compression=compression,
            **properties,
        )


@contextlib.contextmanager
def _producer_for(app: Any, message: Any) -> Any:
    conf = app.conf
    if conf.broker_read_url == conf.broker_write_url:
        # The channel the message came on: no further socket, and it is acknowledged there.
        yield Producer(message.channel, auto_declare=False)
    else:
        with app.producer_pool.acquire(block=True) as producer:
            yield producer


# -- when the worker goes -----------------------------------------------------------------


def running_elections() -> set[str]:
    """The elections whose leader-only bodies run here, or may begin to."""
    # Copies made in one step: the main thread goes on meanwhile. First what may become
    # active: the other way round, one that does in between would be seen in neither.
    pooled = [request for request in list(_fetched.values()) if _in_pool(request)]
    active = [reference() for reference in list(active_requests.data)]
    bound = [
        options_for(request.task, request.args, request.kwargs)
        for request in (*pooled, *active)
        if request is not None
    ]
    return {options.election for options in bound if options is not None}


def _in_pool(request: Any) -> bool:
    return request._apply_result is not None


def give_all_back() -> None:
    """Put the leader-only messages that wait here back where they came from, in their order."""
    waiting = [request for request in _fetched.values() if not _in_pool(request)]
    # The last one first, because each is put in front of the others.
    for request in reversed(waiting):
        try:
            give_back(request)
        except Exception as exc:
            # Not acknowledged: the broker gives it to another when this worker is gone.
            logger.warning("%s cannot be given back yet: %s", request.name, exc)
            return
    if waiting:
        logger.info("%d waiting leader-only task(s) given back", len(waiting))


def give_back(request: LeaderOnlyRequest) -> None:
    """Give the message of a request that was not started to the next leader."""
    options = options_for(request.task, request.args, request.kwargs)
    assert options is not None
    message = request.message
    queue = leader_queue(request.app, options.election)
    if (message.delivery_info or {}).get("routing_key") == queue.name:
        put_in_front(message)
    else:
        put(request.app, message, queue)
        message.ack()
    # Should its timer or the pool come back to it after all.
    request.given_back = request.acknowledged = True
    task_ready(request)
    _fetched.pop(id(request), None)


def put_in_front(message: Any) -> None:
    """Have a received message be the next one that is delivered from its queue."""
    qos: Any = getattr(message.channel, "qos", None)
    if not hasattr(qos, "restore_by_tag"):
        message.requeue()
        return
    # On Redis a requeued message goes to the end; a restored one does not.
    qos.restore_by_tag(message.delivery_tag)
    qos.ack(message.delivery_tag)


def _tell_what_cannot_be_aborted(app: Any) -> None:
    names = [name for name, task in sorted(app.tasks.items()) if _may_abort(task)]
    if names:
        logger.warning(
            "on_deposed='abort' has no effect in a gevent or eventlet pool: %s will finish;"
            " have them call check_leader(), or use another pool",
            ", ".join(names),
        )


def _may_abort(task: Any) -> bool:
    options = options_of(task)
    return options is not None and options.on_deposed == "abort"
