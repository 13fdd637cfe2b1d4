"""Private names of kombu: its Redis channel, its delayed delivery, its detection of greenlets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from queue import Empty
from typing import Any

from kombu import Queue
from kombu.transport.redis import Channel as RedisChannel
from kombu.transport.virtual import QoS
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from . import attribute, imported

#: Names the kind of greenlets that this process runs on, or ``default``.
detect_environment: Callable[[], str] = imported(
    "kombu.utils.compat:detect_environment", "know a process that runs on greenlets"
)

_DELAYED = "kombu.transport.native_delayed_delivery"

#: The exchange that gets a message once Celery's delayed delivery on RabbitMQ has delayed it.
CELERY_DELAYED_DELIVERY_EXCHANGE: str = imported(
    f"{_DELAYED}:CELERY_DELAYED_DELIVERY_EXCHANGE", "receive what RabbitMQ has delayed"
)

#: How many words stand before the queue's name in the routing key of a delayed message.
MAX_NUMBER_OF_BITS_TO_USE: int = imported(
    f"{_DELAYED}:MAX_NUMBER_OF_BITS_TO_USE", "know the queue of what RabbitMQ has delayed"
)

#: What ``BufferingChannel`` overrides in kombu's Redis channel.
_PUBLISHING = ("_connparams", "_put", "_put_fanout", "basic_publish", "conn_or_acquire")
_PUT_BACK = "put a message back in front of its queue"
_POP = "end the pop that is under way"
_ORIGIN = "put a message back into its own queue"


def check_publishing(channel_class: type) -> None:
    """Refuse a Redis channel in which a message cannot be held back.

    A method of ours that overrides nothing would never be called, and messages would leave
    unfenced.

    Raises:
        LeaderError: it lacks a method that kombu's channel publishes with.
    """
    for name in _PUBLISHING:
        attribute(channel_class, name, "hold a periodic message back until the lease is checked")


# -- resolving a connection ---------------------------------------------------------


class _NoClient:
    """Stands where a kombu channel expects a client, so that it does not connect."""

    def ping(self) -> None:
        """The first thing that a channel does with its client."""


_RESOLVE = "find the Redis of the broker without connecting to it"


@contextlib.contextmanager
def unconnected_channel(connection: Any) -> Iterator[Any]:
    """A channel of ``connection`` that never connects: it only knows names and options."""
    transport = connection.transport
    attribute(transport.Channel, "_create_client", _RESOLVE)

    class Unconnected(transport.Channel):  # type: ignore[name-defined, misc]
        def _create_client(self, asynchronous: bool = False) -> _NoClient:
            return _NoClient()

    channel = Unconnected(transport)
    try:
        yield channel
    finally:
        attribute(transport, "cycle", _RESOLVE).discard(channel)
        transport.close_channel(channel)


def connection_pool(connection: Any) -> Any:
    """The redis-py pool that kombu would use for ``connection``; connects to nothing.

    Only a channel knows how TLS, Sentinel and credentials become options of a connection.
    """
    with unconnected_channel(connection) as channel:
        return attribute(channel, "pool", _RESOLVE)


# -- a channel of a worker that consumes from Redis -----------------------------------


def restores_by_tag(channel: Any) -> bool:
    """Whether ``channel`` keeps its unacknowledged messages in Redis."""
    return hasattr(getattr(channel, "qos", None), "restore_by_tag")


def raw_message(message: Any) -> dict[str, Any]:
    """``message`` as it stood in its queue."""
    return dict(attribute(message, "_raw", _PUT_BACK))


def list_key(channel: Any, queue: str, payload: dict[str, Any]) -> str:
    """The Redis list of ``queue`` for messages with the priority of ``payload``."""
    priority_of = attribute(channel, "_get_message_priority", _PUT_BACK)
    try:
        priority = priority_of(payload, reverse=False)
    except OverflowError:
        priority = channel.default_priority
    name = attribute(channel, "_q_for_pri", _PUT_BACK)(queue, priority)
    return f"{channel.global_keyprefix}{name}"


def unacked_keys(channel: Any) -> list[str]:
    """The Redis keys in which ``channel`` keeps its unacknowledged messages."""
    names = ("unacked_key", "unacked_index_key")
    return [channel.global_keyprefix + attribute(channel.qos, name, _PUT_BACK) for name in names]


def forget_delivery(channel: Any, delivery_tag: Any) -> None:
    """Acknowledge a delivery in this process only: Redis was told already."""
    QoS.ack(channel.qos, delivery_tag)


def is_popping(channel: Any) -> bool:
    """Whether ``channel`` waits for a message."""
    return bool(attribute(channel, "_in_poll", _POP))


def take_popped(channel: Any) -> None:
    """Receive the message that the pop under way has taken, as kombu does when it closes."""
    with contextlib.suppress(Empty):
        attribute(channel, "_brpop_read", _POP)()


def queue_of(message: Any, task_consumer: Any) -> Queue | None:
    """The queue, of those consumed, that ``message`` came from; ``None`` if that cannot be told."""
    delivery = message.delivery_info or {}
    tags = attribute(task_consumer, "_active_tags", _ORIGIN)
    names = {name for name, tag in tags.items() if tag == delivery.get("consumer_tag")}
    if not names:
        exchange, key = delivery.get("exchange") or "", delivery.get("routing_key") or ""
        look_up = getattr(message.channel, "_lookup", None)  # not of RabbitMQ, which has tags
        names = {key} if look_up is None or not exchange else {*look_up(exchange, key)}
    return next((queue for queue in task_consumer.queues if queue.name in names), None)


# -- a channel that fetches instead of popping ------------------------------------------

#: What ``LeaderChannel`` overrides in kombu's Redis channel, or takes for granted there.
_CONSUMING = ("_brpop_start", "_brpop_read", "_put", "_q_for_pri", "_in_poll", "active_queues")
_FETCH = "fetch leader-only messages without losing any"


def keeps_lists(transport: Any) -> bool:
    """Whether ``transport`` keeps messages in Redis as kombu itself does, and can be fetched from.

    Other packages bring transports to Redis that keep them in other ways.
    """
    channel_class = transport.Channel
    if transport.driver_type != "redis" or not issubclass(channel_class, RedisChannel):
        return False
    return all(
        getattr(channel_class, name) is attribute(RedisChannel, name, _FETCH)
        for name in ("_brpop_start", "_brpop_read", "_put", "_q_for_pri")
    )


def leave_out(channel: Any, queues: Collection[str]) -> None:
    """Have ``channel`` never pop a message of ``queues``, whatever it consumes from.

    It also closes in one go when its connection is lost. kombu gives up closing if the pop under
    way fails, and when it closes the channel again, its connection is gone and the worker dies.
    With another channel that may notice the loss first, that is no rare case.
    """
    cls = type(channel)
    attribute(cls, "active_queues", _FETCH)

    def active_queues(self: Any) -> list[str]:
        return [queue for queue in cls.active_queues.fget(self) if queue not in queues]

    def close(self: Any) -> None:
        try:
            cls.close(self)
        except self.connection_errors:
            cls.close(self)  # the pop is over; does nothing if it was not the pop that failed

    own = {"active_queues": property(active_queues), "close": close}
    channel.__class__ = type(cls.__name__, (cls,), own)


def channel_beside(channel: Any, mixin: type) -> Any:
    """Another channel of the connection of ``channel``, with ``mixin`` before kombu's own class."""
    transport = channel.connection
    for name in _CONSUMING:
        attribute(transport.Channel, name, _FETCH)
    beside = type(mixin.__name__, (mixin, transport.Channel), {})(transport)
    transport.channels.append(beside)
    return beside


def stop_polling(channel: Any, hub: Any) -> None:
    """Have the worker forget the sockets of ``channel``, which closes while others go on.

    ``hub``: the worker's event loop, if it has one. kombu 5.5 would end the polling of all channels
    when one of them loses its connection, so it is not told.
    """
    cycle = channel.connection.cycle
    sockets = attribute(cycle, "_chan_to_sock", _FETCH)
    for key, sock in [item for item in sockets.items() if item[0][0] is channel]:
        fileno = sock.fileno()
        del sockets[key]
        attribute(cycle, "_fd_to_chan", _FETCH).pop(fileno, None)
        with contextlib.suppress(KeyError, ValueError, OSError):
            if hub is None:
                cycle.poller.unregister(fileno)
            else:
                hub.remove(fileno)
    channel._registered = False


def renew_credentials(channel: Any) -> None:
    """Send new credentials over the connection of ``channel``, which waits for nothing now.

    kombu 5.7 has credentials that change; earlier versions have not.
    """
    renew = getattr(channel, "_flush_brpop_reauth", None)
    if renew is not None:
        renew()


def queue_lists(channel: Any, queue: str) -> list[str]:
    """The Redis lists of ``queue``, the highest priority first."""
    name_of = attribute(channel, "_q_for_pri", _FETCH)
    names = dict.fromkeys(name_of(queue, step) for step in channel.priority_steps)
    return [f"{channel.global_keyprefix}{name}" for name in names]


def receive(task_consumer: Any, message: Any) -> None:
    """Give ``message`` to Celery's consumer of tasks, as a channel does."""
    attribute(task_consumer, "_receive_callback", _FETCH)(message)


def run_command(channel: Any, command: Sequence[Any]) -> Any:
    """The answer to ``command``, over a connection of ``channel``; its keys stay as they are.

    kombu's clients put the key prefix before some keys of some commands.

    Raises:
        redis.exceptions.RedisError, OSError: there was no answer, or Redis refused.
    """
    if channel.closed or channel.connection is None or channel.connection.client is None:
        raise RedisConnectionError("the worker is not connected")
    with channel.conn_or_acquire() as client:
        return Redis.execute_command(client, *command)


def credit_left(channel: Any, held: int) -> int | None:
    """How many more messages may be received; ``None`` if there is no limit.

    ``held``: how many count that ``channel`` has not received itself.
    """
    qos = channel.qos
    if not qos.prefetch_count:
        return None
    delivered = attribute(qos, "_delivered", _FETCH)
    settled = attribute(qos, "_dirty", _FETCH)
    left: int = qos.prefetch_count - (len(delivered) - len(settled) + held)
    return max(0, left)


def share_credit(channel: Any, held: Callable[[], int]) -> None:
    """Have ``held()`` messages more count as received by ``channel``.

    Celery itself replaces ``can_consume`` in this way, for ``worker_disable_prefetch``.
    """
    qos = channel.qos
    own = qos.can_consume

    def can_consume() -> bool:
        return bool(own()) and credit_left(channel, held()) != 0

    qos.can_consume = can_consume
