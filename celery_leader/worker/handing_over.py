"""Hands a leader-only message that must not run here to the leader queue.

A message is published first and acknowledged then. If the worker dies in between, the message
is delivered twice and not lost. A message that the broker refuses is kept and tried again; at the
worker's end, over a separate connection. Not guaranteed: that a message arrives which cannot be
published because of its own content. After a few tries it is dropped, and logged as an error.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu import Producer, Queue
from redis.exceptions import RedisError

from celery_leader.compat.kombu import MAX_NUMBER_OF_BITS_TO_USE
from celery_leader.core.events import Forwarded
from celery_leader.runtime.app_runtime import runtime_of
from celery_leader.runtime.log import get_logger
from celery_leader.tasks.routing import leader_queue

from .leader_channel import is_fetched
from .state import WorkerState, worker_state

if TYPE_CHECKING:
    from celery_leader.compat.celery_worker import Request

logger = get_logger(__name__)

HOPS = "leader_hops"
#: When a worker first did not know the task, in seconds since 1970.
UNKNOWN_SINCE = "leader_unknown_since"

_PATIENCE = 1.0  # seconds between tries
_TRIES = 3  # of a message that fails because of its own content

_MOST_HOPS = 10**9
_LONGEST_EXPIRATION = 2**32 - 1  # milliseconds; the longest that RabbitMQ takes
_HIGHEST_PRIORITY = 255

#: What Celery's delayed delivery on RabbitMQ puts before a routing key.
_DELAY = re.compile(rf"^(?:[01]\.){{{MAX_NUMBER_OF_BITS_TO_USE}}}")

#: Properties of a received message that belong to its delivery.
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
#: Properties that ``publish`` would take for its own arguments.
_OF_PUBLISHING = frozenset(inspect.signature(Producer.publish).parameters)


@dataclass(slots=True, eq=False)
class Stray:
    """A received message that this worker must not run.

    Attributes:
        app: the worker's app.
        election: the election whose leader queue it belongs in.
        task: the name of its task.
        message: the message.
        acknowledge: acknowledges it.
        request: the request that Celery made of it, if there is one.
        back_to: its own queue, if it is to be put back because nobody here knows its task. If not,
            it belongs in the leader queue.
        tries: how often it failed because of its own content.
    """

    app: Celery
    election: str
    task: str
    message: Any
    acknowledge: Callable[[], object]
    request: Request | None = None
    back_to: Queue | None = None
    tries: int = 0

    @property
    def is_ours_alone(self) -> bool:
        """Whether the broker has forgotten the message, so that only this worker has it."""
        return self.request is not None and bool(self.request.acknowledged)


def hand_over(stray: Stray) -> None:
    """Publish the message to its leader queue and acknowledge it, now or later.

    A full Redis, for example, must neither end the worker nor lose the message. After a few tries
    a message that cannot be published because of its own content is dropped.

    Raises:
        Exception: the connection to the broker is lost; Celery makes a new one.
    """
    if is_fetched(stray.message) and _came_from_there(stray) and _give_back(stray):
        return
    try:
        _pass_on(stray)
    except Exception as exc:
        consumer = worker_state(stray.app).consumer
        if consumer is None:
            raise
        # kombu counts ``KeyError`` as a lost Redis connection. Here it means a bad message.
        lost = isinstance(exc, consumer.connection_errors) and not isinstance(exc, LookupError)
        if not lost or stray.is_ours_alone:
            temporary = lost or isinstance(exc, consumer.channel_errors)
            _keep_or_refuse(stray, exc, temporary=temporary)
        if lost:
            raise  # the worker connects again, and the broker delivers what was not acknowledged
        return
    stray.acknowledge()


def _came_from_there(stray: Stray) -> bool:
    """Whether a fetched message came from the queue that it is to go to.

    If not, its task was of another election when it was sent.
    """
    to = stray.back_to.name if stray.back_to else runtime_of(stray.app).queue(stray.election)
    return bool(stray.message.channel.source.queue == to)


def _give_back(stray: Stray) -> bool:
    """Put a fetched message back into its queue, in one step; whether that is settled now."""
    try:
        # A leader that does not know the task tries the other messages first.
        given = stray.message.channel.source.give_back(stray.message, header=_first_seen(stray))
    except (RedisError, OSError) as exc:  # in a pool's thread, where no worker connects again
        logger.warning("%s: %s cannot be given back yet: %s", stray.election, stray.task, exc)
        hand_over_later(stray)
        return True
    return given or not stray.is_ours_alone


def _first_seen(stray: Stray) -> str:
    """The header that says since when no worker has known the task; empty if this one does."""
    if stray.back_to is None:
        return ""
    return f'"{UNKNOWN_SINCE}": {stray.message.headers[UNKNOWN_SINCE]}'


def _pass_on(stray: Stray, producer: Producer | None = None) -> None:
    queue = stray.back_to or leader_queue(stray.app, stray.election)
    publish_again(stray.app, stray.message, queue, producer)
    if stray.back_to is not None:
        return
    task_id = stray.message.headers.get("id") or "?"
    logger.info(
        "%s: %s[%s] handed to %s, not leading", stray.election, stray.task, task_id, queue.name
    )
    node = getattr(worker_state(stray.app).consumer, "hostname", "")
    runtime_of(stray.app).observers.tell(
        Forwarded(stray.election, node, stray.task, task_id, queue.name)
    )


# -- what could not be handed over ---------------------------------------------------------


def _keep_or_refuse(stray: Stray, exc: Exception, *, temporary: bool) -> None:
    stray.tries = 0 if temporary else stray.tries + 1
    if stray.tries < _TRIES:
        logger.warning("%s: %s cannot be handed over yet: %s", stray.election, stray.task, exc)
        hand_over_later(stray)
        return
    logger.error(
        "%s: %s[%s] is refused, since it cannot be written again: %s: %s",
        stray.election,
        stray.task,
        str(stray.message.headers.get("id"))[:100],
        type(exc).__name__,
        str(exc)[:200],
    )
    stray.acknowledge()


def hand_over_later(stray: Stray) -> None:
    """Keep the message and hand it over in a moment, unless the broker delivers it again."""
    state = worker_state(stray.app)
    state.kept[id(stray.message)] = stray
    state.consumer.timer.call_after(_PATIENCE, functools.partial(_try_again, state, stray))


def connected(state: WorkerState) -> None:
    """The worker is connected again: try the kept messages soon.

    Celery before 5.7 forgets what was to be done later when it loses its connection.
    """
    for stray in list(state.kept.values()):
        hand_over_later(stray)


def _try_again(state: WorkerState, stray: Stray) -> None:
    if state.kept.get(id(stray.message)) is not stray:
        return
    del state.kept[id(stray.message)]
    task_consumer = state.task_consumer
    if task_consumer is None:
        if stray.is_ours_alone:
            hand_over_later(stray)
    # The broker delivers a message again if the connection that it came on is gone.
    elif (
        stray.is_ours_alone
        or is_fetched(stray.message)
        or stray.message.channel is task_consumer.channel
    ):
        hand_over(stray)


def hand_over_kept(state: WorkerState) -> None:
    """The worker ends: hand over the kept messages that the broker has forgotten.

    All of them go over one connection. If it cannot be made, all that are left are lost.
    """
    kept = [stray for stray in state.kept.values() if stray.is_ours_alone]
    state.kept.clear()
    if not kept:
        return
    try:
        with kept[0].app.producer_pool.acquire(block=True) as producer:
            while kept:
                # Does nothing unless the last message has broken the connection.
                producer.connection.ensure_connection(max_retries=2, interval_start=0.5)
                stray = kept.pop(0)
                try:
                    _pass_on(stray, producer)
                except Exception as exc:
                    _report_lost(stray, exc)
    except Exception as exc:
        for stray in kept:
            _report_lost(stray, exc)


def _report_lost(stray: Stray, exc: Exception) -> None:
    logger.error(
        "%s: %s[%s] is lost, since it cannot be handed over: %s",
        stray.election,
        stray.task,
        stray.message.headers.get("id"),
        exc,
    )


# -- publishing a received message ---------------------------------------------------------


def publish_again(
    app: Celery, message: Any, queue: Queue, producer: Producer | None = None
) -> None:
    """Publish a received message again as it came, to ``queue``, with one more hop."""
    headers = dict(message.headers)
    headers[HOPS] = (_number(headers.get(HOPS), _MOST_HOPS) or 0) + 1
    # kombu has decompressed the body; ``publish`` compresses it again.
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
    """The properties of ``message`` to publish it with.

    Values that make no sense are left out: anybody who can write to Redis may have written them.
    """
    properties = {
        name: value
        for name, value in message.properties.items()
        if name not in _OF_DELIVERY and name not in _OF_PUBLISHING
    }
    # A received message has it in milliseconds, as text; ``publish`` takes seconds.
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
def _producer_for(app: Celery, message: Any) -> Any:
    if app.conf.broker_read_url == app.conf.broker_write_url:
        # The worker's own channel: it needs no other socket, and the message is acknowledged
        # there. The channel that the message came on may be gone.
        task_consumer = worker_state(app).task_consumer
        channel = message.channel if task_consumer is None else task_consumer.channel
        yield Producer(channel, auto_declare=False)
    else:
        with app.producer_pool.acquire(block=True) as producer:
            yield producer


def key_of(message: Any) -> str:
    """The routing key that ``message`` was sent with; for a leader queue, the queue's name."""
    key: str = (message.delivery_info or {}).get("routing_key") or ""
    return _DELAY.sub("", key)
