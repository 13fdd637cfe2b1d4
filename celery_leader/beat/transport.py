"""A kombu Redis transport that can hold a message back and hand it to a ``Delivery``.

While a buffer has a delivery, it records the commands that kombu's own channel would send in one
publish, with the queue, priority, expiry and topic that kombu chose. At the end of the publish the
delivery gets them, and a script runs them. What the delivery raises comes out of the publish, like
any failure to publish. Exchanges, bindings and queue declarations are not held back.

Guaranteed: while there is a delivery, the first message that is published through a channel of this
transport goes to the delivery only. Not guaranteed: that kombu still uses this transport; ask
``obeys(channel)`` before each message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from celery_leader.compat.kombu import check_publishing
from celery_leader.runtime.lease_source import no_retry
from celery_leader.store.schedule_store import Push


class Delivery(Protocol):
    """Delivers a message in kombu's place."""

    @property
    def done(self) -> bool:
        """Whether a message was delivered; later ones go straight to their queues."""

    def deliver(self, pushes: list[Push]) -> None:
        """Deliver one message; what this raises comes out of the publish."""

    def failed_later(self, push: Push, exc: Exception) -> None:
        """Note that ``push``, which came after the message, failed with ``exc``."""


class PublishBuffer:
    """Collects the commands of one publish, for the delivery that is open."""

    def __init__(self) -> None:
        self.delivery: Delivery | None = None
        self.collects = False
        self._pushes: list[Push] = []

    @contextmanager
    def handing_to(self, delivery: Delivery) -> Iterator[None]:
        """While open, hand the first message that is published to ``delivery``."""
        self.delivery = delivery
        try:
            yield
        finally:
            self.delivery = None

    @contextmanager
    def collecting(self) -> Iterator[list[Push]]:
        """Hold back the commands of one publish, and yield the list that collects them."""
        self.collects, self._pushes = True, []
        try:
            yield self._pushes
        finally:
            self.collects = False

    # The part of a redis-py client that kombu's channel uses to deliver.

    def lpush(self, key: str, value: bytes | str) -> None:
        """Record a message for a queue."""
        self._pushes.append(Push("LPUSH", key, value))

    def publish(self, topic: str, value: bytes | str) -> None:
        """Record a message for a fanout exchange."""
        self._pushes.append(Push("PUBLISH", topic, value))

    def pexpire(self, key: str, millis: int) -> None:
        """Record that a queue expires when unused."""
        self._pushes.append(Push("PEXPIRE", key, millis))

    def pipeline(self, *args: Any, **kwargs: Any) -> PublishBuffer:
        """This buffer: all recorded commands are delivered in one step anyway."""
        return self

    def execute(self) -> None:
        """Nothing to do; see ``pipeline``."""

    def __enter__(self) -> PublishBuffer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


class BufferingChannel:
    """Put before kombu's Redis channel: it holds a message back while its buffer has a delivery.

    Attributes:
        buffer: the buffer that it obeys.
        patience: seconds that one answer of the broker may take, unless the user has set that.
    """

    buffer: PublishBuffer
    patience: float
    keyprefix_fanout: str

    # A batch of kombu sends its messages at its end, past the buffer.
    supports_batch_publish = False
    _delivering = False

    def _connparams(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        params = super()._connparams(*args, **kwargs)  # type: ignore[misc]
        unlimited = [
            name
            for name in ("socket_timeout", "socket_connect_timeout")
            if name in params and params[name] is None
        ]
        return {**params, **dict.fromkeys(unlimited, self.patience), "retry": no_retry()}

    def basic_publish(self, message: Any, exchange: str, routing_key: str, **kwargs: Any) -> Any:
        """Publish; while there is a delivery, it delivers the first message."""
        delivery = self.buffer.delivery
        if delivery is None or delivery.done:
            return super().basic_publish(message, exchange, routing_key, **kwargs)  # type: ignore[misc]
        with self.buffer.collecting() as pushes:
            result = super().basic_publish(message, exchange, routing_key, **kwargs)  # type: ignore[misc]
        delivery.deliver(pushes)
        return result

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        with self._pushing(Push("LPUSH", queue, "")):
            super()._put(queue, message, **kwargs)  # type: ignore[misc]

    def _put_fanout(
        self, exchange: str, message: Any, routing_key: str | None, **kwargs: Any
    ) -> None:
        with self._pushing(Push("PUBLISH", f"{self.keyprefix_fanout}{exchange}*", "")):
            super()._put_fanout(exchange, message, routing_key, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _pushing(self, push: Push) -> Iterator[None]:
        self._delivering = True
        try:
            yield
        except Exception as exc:
            if self.buffer.delivery is not None and self.buffer.delivery.done:
                self.buffer.delivery.failed_later(push, exc)
            raise
        finally:
            self._delivering = False

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The client to push with: the buffer, in the middle of a publish that is held back."""
        if self._delivering and self.buffer.collects:
            yield self.buffer
        else:
            with super().conn_or_acquire(client) as real:  # type: ignore[misc]
                yield real


def buffering_transport(base: Any, buffer: PublishBuffer, patience: float) -> Any:
    """A subclass of ``base``, a kombu Redis transport, whose channels obey ``buffer``.

    ``socket_timeout`` and ``socket_connect_timeout`` are ``patience`` seconds unless they are set,
    and redis-py does not retry. Otherwise kombu would wait for ever on a silent connection.
    """
    check_publishing(base.Channel)
    what = {"buffer": buffer, "patience": patience}
    channel = type("BufferingRedisChannel", (BufferingChannel, base.Channel), what)
    options = {"Channel": channel, "supports_batch_publish": False}
    return type("BufferingTransport", (base,), options)


def counting_producer(base: Any) -> Any:
    """A subclass of ``base``, a kombu producer, that counts its messages."""

    class CountingProducer(base):  # type: ignore[misc]
        published = 0

        def publish(self, *args: Any, **kwargs: Any) -> Any:
            result = super().publish(*args, **kwargs)
            self.published += 1
            return result

    return CountingProducer


def obeys(channel: Any, buffer: PublishBuffer) -> bool:
    """Whether ``buffer`` can hold back the messages of ``channel``."""
    return getattr(channel, "buffer", None) is buffer
