"""A kombu Redis transport whose messages can be held back and handed over.

While a ``Hold`` is open, what kombu's own channel would push is recorded instead,
with the queue, priority, expiry and topic kombu chose; whoever opened it pushes that
in a script of its own. Exchanges, bindings and queue declarations are not held.
Guaranteed: a message published through a channel of this transport while the hold
is open does not leave by itself. Not guaranteed: that kombu still uses this
transport; ask ``holds(channel)`` before every hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .broker import no_retry
from .schedule_store import Push


class Hold:
    """Collects what one publish would have pushed."""

    def __init__(self) -> None:
        self.open = False
        self.pushes: list[Push] = []

    @contextmanager
    def collecting(self) -> Iterator[list[Push]]:
        """Hold back what is published inside, and yield the list it goes to."""
        self.open, self.pushes = True, []
        try:
            yield self.pushes
        finally:
            self.open = False

    # The part of a redis-py client that kombu's channel uses to deliver.

    def lpush(self, key: str, value: bytes | str) -> None:
        """Record a message for a queue."""
        self.pushes.append(Push("LPUSH", key, value))

    def publish(self, topic: str, value: bytes | str) -> None:
        """Record a message for a fanout exchange."""
        self.pushes.append(Push("PUBLISH", topic, value))

    def pexpire(self, key: str, millis: int) -> None:
        """Record that a queue expires when unused."""
        self.pushes.append(Push("PEXPIRE", key, millis))

    def pipeline(self, *args: Any, **kwargs: Any) -> Hold:
        """Everything recorded is delivered in one step anyway."""
        return self

    def execute(self) -> None:
        """See ``pipeline``."""

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


def holding_transport(base: Any, hold: Hold, timeout: float) -> Any:
    """``base``, a kombu Redis transport class, with channels that obey ``hold``.

    Where no ``socket_timeout`` or ``socket_connect_timeout`` is set, it is ``timeout``
    seconds, and nothing is tried again unasked: kombu would wait for ever on a connection
    that was opened into silence.
    """

    class HoldingChannel(base.Channel):  # type: ignore[misc]
        _delivering = False

        def _connparams(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            params = super()._connparams(*args, **kwargs)
            unlimited = [
                name
                for name in ("socket_timeout", "socket_connect_timeout")
                if name in params and params[name] is None
            ]
            return {**params, **dict.fromkeys(unlimited, timeout), "retry": no_retry()}

        def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
            self._delivering = True
            try:
                super()._put(queue, message, **kwargs)
            finally:
                self._delivering = False

        def _put_fanout(
            self, exchange: str, message: Any, routing_key: str | None, **kwargs: Any
        ) -> None:
            self._delivering = True
            try:
                super()._put_fanout(exchange, message, routing_key, **kwargs)
            finally:
                self._delivering = False

        @contextmanager
        def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
            if self._delivering and hold.open:
                yield hold
            else:
                with super().conn_or_acquire(client) as real:
                    yield real

    HoldingChannel.hold = hold

    class HoldingTransport(base):  # type: ignore[misc]
        Channel = HoldingChannel

    return HoldingTransport


def holds(channel: Any, hold: Hold) -> bool:
    """Whether what is published on ``channel`` obeys ``hold``."""
    return getattr(channel, "hold", None) is hold
