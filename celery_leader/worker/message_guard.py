"""What becomes of a leader-only message that a worker has received.

It is let in where its election is led. Elsewhere it is handed to the leader queue, or
skipped if its task says so. A message that has not begun when its worker stops leading on
purpose goes back to the front of the queue. Guaranteed: a message is acknowledged only after
it was handed over; its content is not changed; one that is skipped keeps no place in the
prefetch while its result backend is away. Not guaranteed: that it is handed over once; a
worker that dies in between leaves it to be delivered again.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import re
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from celery import signals
from celery.exceptions import TaskRevokedError
from celery.utils.imports import instantiate, symbol_by_name
from celery.worker.request import Request
from celery.worker.state import active_requests, task_ready
from celery.worker.strategy import hybrid_to_proto2
from kombu import Producer, Queue
from kombu.transport.native_delayed_delivery import MAX_NUMBER_OF_BITS_TO_USE

from celery_leader.core.events import Forwarded, Skipped
from celery_leader.runtime.leadership import leadership_of
from celery_leader.tasks.leader_only import (
    LeaderOnly,
    NotLeading,
    installed,
    leader_queue,
    options_for,
    options_of,
    starts,
)
from celery_leader.tasks.skipped import SkippedResults, TaskSkipped, Unstored

from .front import STEP, put_in_front

logger = logging.getLogger(__name__)

HOPS = "leader_hops"

_TRIES = 3  # of a message that cannot be handed over because of what is in it

_MOST_HOPS = 10**9
_LONGEST_EXPIRATION = 2**32 - 1  # milliseconds; what RabbitMQ takes
_HIGHEST_PRIORITY = 255

PATIENCE = 1.0  # seconds; until a message that could not be given away is tried again

#: The consumer of each app that runs a worker here, for what happens in a task's request.
consumers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

# What Celery's delayed delivery on RabbitMQ puts before a routing key.
_DELAY = re.compile(rf"^(?:[01]\.){{{MAX_NUMBER_OF_BITS_TO_USE}}}")

#: What ends the wait of that consumer's event loop, for any thread.
wakers: weakref.WeakKeyDictionary[Any, Callable[[], None]] = weakref.WeakKeyDictionary()

skipped_results = SkippedResults()

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
        # Decoded only if its arguments decide: otherwise the leader finds out what is wrong.
        options = options_of(task) or options_for(task, *_arguments(message))
        if options is None:
            return admit(message, body, ack, reject, callbacks)
        gives_way = options.election in leadership.giving_way
        if leadership.term(options.election) is not None and not gives_way:
            return admit(message, body, ack, reject, callbacks)
        if not gives_way:
            _leave_to_leader(consumer, leadership.queue(options.election))
        request = None
        if options.on_follower == "skip" and not gives_way:
            request = _request_of(task, consumer, message, ack, reject)
        return hand_over_or_retry(
            task, options, message, request, lambda: ack(logger, consumer.connection_errors)
        )

    return on_message


def _leave_to_leader(consumer: Any, queue: str) -> None:
    """Have a worker that does not lead consume from the leader's queue no more.

    Somebody's ``celery control add_consumer`` has made it; it would hand each message to
    the queue that it takes it from.
    """
    task_consumer = consumer.task_consumer
    if task_consumer is not None and task_consumer.consuming_from(queue):
        consumer.cancel_task_queue(queue)


def _arguments(message: Any) -> tuple[Any, Any]:
    payload = message.payload
    try:
        if "args" in payload:  # Celery's first message protocol
            return payload["args"], payload.get("kwargs")
        return payload[0], payload[1]
    except (LookupError, TypeError, AttributeError):
        return None, None  # Celery says what is wrong with it


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


# Properties that would be taken for other arguments of who publishes, or are set right there.
_OF_PUBLISHING = frozenset(inspect.signature(Producer.publish).parameters)

#: Leader-only requests whose body has not begun, in the order they came. Celery forgets
#: its own before a consumer step hears of a shutdown.
_fetched: dict[int, LeaderOnlyRequest] = {}


class LeaderOnlyRequest(Request):  # type: ignore[misc]
    """A request whose body may find, when it is about to start, that it must not."""

    given_back = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _fetched[id(self)] = self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Celery makes each worker's requests a subclass whose own calls no other.
        own = vars(cls).get("execute_using_pool")
        if own is not None:
            cls.execute_using_pool = _where_led(own)

    def let_go(self) -> None:
        """Its message was given back: whatever the pool reports of it, it does not run here."""
        self.given_back = self.acknowledged = True
        task_ready(self)
        _fetched.pop(id(self), None)

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
        if self.given_back:
            return task_ready(self)
        return self.leave_to_leader()

    def leave_to_leader(self) -> None:
        """Hand the message over, or skip it: the body has not begun, and is not to."""
        task_ready(self)
        _fetched.pop(id(self), None)
        options = options_for(self.task, self.args, self.kwargs)
        assert options is not None
        hand_over_or_retry(self.task, options, self._message, self, self.acknowledge)


def _where_led(execute: Callable[..., Any]) -> Callable[..., Any]:
    """``execute_using_pool``, which asks before the message can be acknowledged.

    A pool process asks again, but by then an early acknowledgement may be on its way, and
    what is handed over afterwards is lost with the connection.
    """

    @functools.wraps(execute)
    def execute_using_pool(self: LeaderOnlyRequest, pool: Any, **kwargs: Any) -> Any:
        if not self.given_back:
            options = options_for(self.task, self.args, self.kwargs)
            if options is None or not installed(self.app) or starts(self.app, options):
                return execute(self, pool, **kwargs)
            self.leave_to_leader()
        raise TaskRevokedError(self.id)  # with which Celery gives its turn to the next

    return execute_using_pool


def hand_over_or_retry(
    task: Any,
    options: LeaderOnly,
    message: Any,
    request: Request | None,
    acknowledge: Callable[[], Any],
    tries: int = 0,
) -> None:
    """Hand a message over and acknowledge it; where Redis refuses, keep it and try again later.

    A full Redis, for example, must not end the worker or lose the message. A message that
    cannot be written again is refused after a few tries.
    """
    skips = options.on_follower == "skip" and not leadership_of(task.app).is_shut
    if request is not None and skips:
        skip(options, request, acknowledge)
        return
    try:
        hand_over(task, options, message)
    except Exception as exc:
        consumer = consumers.get(task.app)
        if consumer is None:
            raise
        lost = isinstance(exc, consumer.connection_errors) and not isinstance(exc, LookupError)
        if lost and not _is_gone(request):
            raise  # the consumer reconnects, and the message comes again
        tries = 0 if lost or isinstance(exc, consumer.channel_errors) else tries + 1
        if tries == _TRIES:
            _refuse(task, options, message, exc, acknowledge)
            return
        logger.warning("%s: %s cannot be handed over yet: %s", options.election, task.name, exc)
        _try_again(consumer, (task, options, message, request, acknowledge, tries))
        if lost:
            raise
        return
    acknowledge()


def _is_gone(request: Request | None) -> bool:
    """Whether the broker has forgotten the message, so that nobody but this worker has it."""
    return request is not None and request.acknowledged


#: What ``hand_over_or_retry`` is to be called with again, by identity of the message.
_kept: dict[int, tuple[Any, ...]] = {}


def _try_again(consumer: Any, arguments: tuple[Any, ...]) -> None:
    message, request = arguments[2:4]
    _kept[id(message)] = arguments

    def again() -> None:
        if _kept.get(id(message)) is not arguments:
            return
        if not _is_gone(request) and not _is_of(message, consumer):
            del _kept[id(message)]  # of a connection before: it is delivered again
        elif consumer.task_consumer is None:
            _try_again(consumer, arguments)
        else:
            del _kept[id(message)]
            hand_over_or_retry(*arguments)

    consumer.timer.call_after(PATIENCE, again)


def _is_of(message: Any, consumer: Any) -> bool:
    """Whether ``message`` came on the connection that ``consumer`` has now."""
    task_consumer = consumer.task_consumer
    return task_consumer is not None and message.channel is task_consumer.channel


def hand_over_kept() -> None:
    """The worker ends: hand over what nobody else has, over a connection of its own."""
    for arguments in list(_kept.values()):
        task, options, message, request = arguments[:4]
        if not _is_gone(request):
            continue
        try:
            with task.app.producer_pool.acquire(block=True) as producer:
                producer.connection.ensure_connection(max_retries=2, interval_start=0.5)
                hand_over(task, options, message, producer)
        except Exception as exc:
            logger.error(
                "%s: %s[%s] is lost, since it cannot be handed over: %s",
                options.election,
                task.name,
                message.headers.get("id"),
                exc,
            )
    _kept.clear()


def _refuse(
    task: Any, options: LeaderOnly, message: Any, exc: Exception, acknowledge: Callable[[], Any]
) -> None:
    logger.error(
        "%s: %s[%s] is refused, since it cannot be written again: %s: %s",
        options.election,
        task.name,
        str(message.headers.get("id"))[:100],
        type(exc).__name__,
        str(exc)[:200],
    )
    acknowledge()


def hand_over(task: Any, options: LeaderOnly, message: Any, producer: Any = None) -> None:
    """Give a message that this worker must not run to the leader queue.

    The caller acknowledges afterwards: should this worker die in between, the message
    comes twice, never not at all.
    """
    task_id = message.headers.get("id") or "?"
    queue = leader_queue(task.app, options.election)
    put(task.app, message, queue, producer)
    logger.info(
        "%s: %s[%s] handed to %s, not leading", options.election, task.name, task_id, queue.name
    )
    consumer = consumers.get(task.app)
    node = consumer.hostname if consumer is not None else ""
    leadership_of(task.app).tell(Forwarded(options.election, node, task.name, task_id, queue.name))


def skip(options: LeaderOnly, request: Request, acknowledge: Callable[[], Any]) -> None:
    """End a message that this worker must not run, as a revoked one ends.

    It is acknowledged when that is stored, or when storing takes longer: kept, it would only
    be skipped again, and take the place in the prefetch of a message that can run.
    """
    app = request.task.app
    reason = TaskSkipped(
        f"{request.hostname} does not lead {options.election!r} and did not run {request.task.name}"
    )
    settle = _once(acknowledge)

    def told(stored: bool) -> None:
        _in_loop(app, functools.partial(_skipped, options, request, settle) if stored else settle)

    skipped_results.add(Unstored(request.task, request._context, reason, told))
    if skipped_results.failing_since is not None:
        settle()
    else:
        consumers[app].timer.call_after(PATIENCE, settle)


def _skipped(options: LeaderOnly, request: Request, settle: Callable[[], Any]) -> None:
    """The skip is stored: tell who listens."""
    task = request.task
    logger.info("%s: %s[%s] skipped, not leading", options.election, task.name, request.id)
    how = {"terminated": False, "signum": None, "expired": False}
    request.send_event("task-revoked", **how)
    signals.task_revoked.send(sender=task, request=request._context, **how)
    leadership_of(task.app).tell(
        Skipped(options.election, request.hostname, task.name, request.id, "receiver")
    )
    settle()


def _once(act: Callable[[], Any]) -> Callable[[], None]:
    """``act``, but only the first time."""
    left = [act]

    def do() -> None:
        if left:
            left.pop()()

    return do


def _in_loop(app: Any, act: Callable[[], Any]) -> None:
    """Have the event loop of this app's worker call ``act``; for any thread."""
    consumer = consumers[app]
    if consumer.hub is None:
        act()  # pools of greenlets acknowledge from whichever greenlet it is
        return
    consumer.hub.call_soon(act)
    wakers[app]()


def put(app: Any, message: Any, queue: Queue, producer: Any = None) -> None:
    """Publish a received message again as it came, to ``queue``, with one more hop."""
    headers = dict(message.headers)
    headers[HOPS] = (_number(headers.get(HOPS), _MOST_HOPS) or 0) + 1
    # The body has been decompressed on the way in.
    compression = headers.pop("compression", None)
    with contextlib.nullcontext(producer) if producer else _producer_for(app, message) as each:
        each.publish(
            message.body,
            exchange="",
            routing_key=queue.name,
            declare=[queue],
            headers=headers,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            compression=compression,
            **_properties(message),
        )


def _properties(message: Any) -> dict[str, Any]:
    """The properties of ``message``, to publish it with; those that make no sense are left out.

    Anybody who can write to Redis can have written anything.
    """
    properties = {
        name: value
        for name, value in message.properties.items()
        if name not in _OF_DELIVERY and name not in _OF_PUBLISHING
    }
    # Milliseconds, as text, in the message; seconds where it is published.
    expiration = _number(message.properties.get("expiration"), _LONGEST_EXPIRATION)
    if expiration is not None:
        properties["expiration"] = expiration / 1000
    priority = _number(message.properties.get("priority"), _HIGHEST_PRIORITY)
    if priority is not None:
        properties["priority"] = priority
    if message.properties.get("delivery_mode") in (1, 2):
        properties["delivery_mode"] = message.properties["delivery_mode"]
    return properties


def _number(value: Any, most: int) -> int | None:
    """``value`` as a number from 0 to ``most``; ``None`` if it is not one."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number <= most else None


@contextlib.contextmanager
def _producer_for(app: Any, message: Any) -> Any:
    conf = app.conf
    if conf.broker_read_url == conf.broker_write_url:
        # The channel the message came on: no further socket, and it is acknowledged there.
        # One that was acknowledged may come from a connection that is gone.
        now_there = getattr(consumers.get(app), "task_consumer", None)
        channel = message.channel if now_there is None else now_there.channel
        yield Producer(channel, auto_declare=False)
    else:
        with app.producer_pool.acquire(block=True) as producer:
            yield producer


def key_of(message: Any) -> str:
    """The routing key that ``message`` was sent with; that of a leader queue is its name."""
    key: str = (message.delivery_info or {}).get("routing_key") or ""
    return _DELAY.sub("", key)


# -- when the worker goes, or gives way ---------------------------------------------------


def forget_fetched() -> None:
    """The broker delivers again all that waits here: do not give it back too."""
    _fetched.clear()


def running_elections() -> set[str]:
    """The elections whose leader-only bodies run here, or may begin to."""
    # Copies made in one step: the main thread goes on meanwhile. First what may become
    # active: the other way round, one that does in between would be seen in neither.
    pooled = [request for request in list(_fetched.values()) if _in_pool(request)]
    active = [reference() for reference in list(active_requests.data)]
    bound = [_election_of(request) for request in (*pooled, *active) if request is not None]
    return {election for election in bound if election is not None}


def _election_of(request: Any) -> str | None:
    options = options_for(request.task, request.args, request.kwargs)
    return None if options is None else options.election


def _in_pool(request: Any) -> bool:
    return request._apply_result is not None


def give_all_back(elections: Collection[str]) -> None:
    """Put the messages for leaders of ``elections`` that wait here back, in their order."""
    give_back_in_order(elections)
    give_back_the_rest(elections)


def give_back_in_order(elections: Collection[str]) -> None:
    """Put those back in front of their leader queue that are next in it."""
    waiting = _waiting(elections)
    _give_back_in_front([each for each in waiting if _came_from_its_queue(each) and not each.eta])


def give_back_the_rest(elections: Collection[str]) -> None:
    """Give back what has no place in the order: what has an ETA, or came by another queue."""
    waiting = _waiting(elections)
    _give_back_in_front([each for each in waiting if _came_from_its_queue(each)])
    _hand_over_all([each for each in waiting if not _came_from_its_queue(each)])


def _give_back_in_front(waiting: list[LeaderOnlyRequest]) -> None:
    of_queue: dict[str, list[LeaderOnlyRequest]] = {}
    for request in waiting:
        of_queue.setdefault(key_of(request.message), []).append(request)
    for queue, requests in of_queue.items():
        # The last ones first, because each step is put in front of the others.
        for end in range(len(requests), 0, -STEP):
            step = requests[max(0, end - STEP) : end]
            with _told_of_trouble(step[0]) as trouble:
                put_in_front([request.message for request in step], queue)
                for request in step:
                    request.let_go()
            if trouble:
                return
        _log_given_back(requests)


def _hand_over_all(waiting: list[LeaderOnlyRequest]) -> None:
    for request in waiting:
        with _told_of_trouble(request) as trouble:
            election = _election_of(request)
            assert election is not None
            put(request.app, request.message, leader_queue(request.app, election))
            request.message.ack()
            request.let_go()
        if trouble:
            return
    if waiting:
        _log_given_back(waiting)


def _log_given_back(requests: Sequence[LeaderOnlyRequest]) -> None:
    logger.info("%d waiting leader-only task(s) given back", len(requests))


def _waiting(elections: Collection[str]) -> list[LeaderOnlyRequest]:
    return [
        request
        for request in _fetched.values()
        if not _in_pool(request) and _election_of(request) in elections
    ]


@contextlib.contextmanager
def _told_of_trouble(request: Any) -> Iterator[list[Exception]]:
    """What cannot be given back is not acknowledged: the broker gives it to another later."""
    trouble: list[Exception] = []
    try:
        yield trouble
    except Exception as exc:
        logger.warning("%s cannot be given back yet: %s", request.name, exc)
        trouble.append(exc)


def _came_from_its_queue(request: Any) -> bool:
    election = _election_of(request)
    assert election is not None
    return key_of(request.message) == leadership_of(request.app).queue(election)
