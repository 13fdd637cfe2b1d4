"""Private names of kombu: its Redis channel, its delayed delivery, its detection of greenlets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from queue import Empty
from typing import Any

from kombu.transport.virtual import QoS

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


def connection_pool(connection: Any) -> Any:
    """The redis-py pool that kombu would use for ``connection``; connects to nothing.

    Only a channel knows how TLS, Sentinel and credentials become options of a connection.
    """
    transport = connection.transport
    why = "find the Redis of the broker without connecting to it"
    attribute(transport.Channel, "_create_client", why)

    class Unconnected(transport.Channel):  # type: ignore[name-defined, misc]
        def _create_client(self, asynchronous: bool = False) -> _NoClient:
            return _NoClient()

    channel = Unconnected(transport)
    pool = attribute(channel, "pool", why)
    attribute(transport, "cycle", why).discard(channel)
    transport.close_channel(channel)
    return pool


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
