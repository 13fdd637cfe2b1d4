"""A kombu Redis transport whose messages can be held back and handed over.

While a buffer has somebody to deliver for it, what kombu's own channel would push in one
publish is recorded instead, with the queue, priority, expiry and topic kombu chose. At the
end of that publish it is handed over, to be pushed by a script; what goes wrong there
comes out of the publish, as a failure to publish always does. Exchanges, bindings and queue
declarations are not held. Guaranteed: the first message published through a channel of this
transport, while there is somebody to deliver it, does not leave by itself. Not guaranteed:
that kombu still uses this transport; ask ``obeys(channel)`` before each message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from celery_leader.runtime.lease_source import no_retry
from celery_leader.store.schedule_store import Push


class Delivery(Protocol):
    """Delivers what is published while it stands in for the queues."""

    @property
    def done(self) -> bool:
        """Whether a message was delivered; what is published then goes straight to its queue."""

    def deliver(self, pushes: list[Push]) -> None:
        """Deliver one message. What this raises comes out of its publish."""

    def failed_later(self, push: Push, exc: Exception) -> None:
        """Hear that something published after it could not be pushed, because of ``exc``."""


class PublishBuffer:
    """Collects what one publish would push, for the delivery that is open."""

    def __init__(self) -> None:
        self.delivery: Delivery | None = None
        self.collects = False
        self._pushes: list[Push] = []

    @contextmanager
    def handing_to(self, delivery: Delivery) -> Iterator[None]:
        """Hand what is published inside to ``delivery``."""
        self.delivery = delivery
        try:
            yield
        finally:
            self.delivery = None

    @contextmanager
    def collecting(self) -> Iterator[list[Push]]:
        """Hold back what one publish pushes, and yield the list it goes to."""
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
        """Everything recorded is delivered in one step anyway."""
        return self

    def execute(self) -> None:
        """See ``pipeline``."""

    def __enter__(self) -> PublishBuffer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


def holding_transport(base: Any, buffer: PublishBuffer, timeout: float) -> Any:
    """``base``, a kombu Redis transport class, with channels that obey ``buffer``.

    Where no ``socket_timeout`` or ``socket_connect_timeout`` is set, it is ``timeout``
    seconds, and nothing is tried again unasked: kombu would wait for ever on a connection
    that was opened into silence.
    """

    class HoldingChannel(base.Channel):  # type: ignore[misc]
        # A batch of kombu's would push past the buffer, when it ends.
        supports_batch_publish = False
        _delivering = False

        def _connparams(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            params = super()._connparams(*args, **kwargs)
            unlimited = [
                name
                for name in ("socket_timeout", "socket_connect_timeout")
                if name in params and params[name] is None
            ]
            return {**params, **dict.fromkeys(unlimited, timeout), "retry": no_retry()}

        def basic_publish(
            self, message: Any, exchange: str, routing_key: str, **kwargs: Any
        ) -> Any:
            delivery = buffer.delivery
            if delivery is None or delivery.done:
                return super().basic_publish(message, exchange, routing_key, **kwargs)
            with buffer.collecting() as pushes:
                result = super().basic_publish(message, exchange, routing_key, **kwargs)
            delivery.deliver(pushes)
            return result

        def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
            with self._pushing(Push("LPUSH", queue, "")):
                super()._put(queue, message, **kwargs)

        def _put_fanout(
            self, exchange: str, message: Any, routing_key: str | None, **kwargs: Any
        ) -> None:
            with self._pushing(Push("PUBLISH", f"{self.keyprefix_fanout}{exchange}*", "")):
                super()._put_fanout(exchange, message, routing_key, **kwargs)

        @contextmanager
        def _pushing(self, push: Push) -> Iterator[None]:
            self._delivering = True
            try:
                yield
            except Exception as exc:
                if buffer.delivery is not None and buffer.delivery.done:
                    buffer.delivery.failed_later(push, exc)
                raise
            finally:
                self._delivering = False

        @contextmanager
        def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
            if self._delivering and buffer.collects:
                yield buffer
            else:
                with super().conn_or_acquire(client) as real:
                    yield real

    HoldingChannel.buffer = buffer

    class HoldingTransport(base):  # type: ignore[misc]
        Channel = HoldingChannel
        supports_batch_publish = False

    return HoldingTransport


def counting_producer(base: Any) -> Any:
    """``base``, a kombu producer class, whose producers count what they have published."""

    class CountingProducer(base):  # type: ignore[misc]
        published = 0

        def publish(self, *args: Any, **kwargs: Any) -> Any:
            result = super().publish(*args, **kwargs)
            self.published += 1
            return result

    return CountingProducer


def obeys(channel: Any, buffer: PublishBuffer) -> bool:
    """Whether what is published on ``channel`` obeys ``buffer``."""
    return getattr(channel, "buffer", None) is buffer
