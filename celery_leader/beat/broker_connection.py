"""The connection that a beat publishes with: made when it is needed, mended when it is lost.

Guaranteed: where messages are fenced, a producer from here publishes through our transport, so no
message goes out without its claim. Waiting for a silent Redis or AMQP broker ends.
"""

from __future__ import annotations

import contextlib
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ResponseError

from celery_leader.core.watchdog import BrokerHeartbeat
from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import now
from celery_leader.runtime.lease_source import reach
from celery_leader.store.refusals import without_echo

from .transport import PublishBuffer, buffering_transport, counting_producer, obeys


class BrokerConnection:
    """The broker of an app's messages.

    Args:
        app: the app.
        runtime: its part in the elections.
        buffer: holds messages back until their ticks are claimed; ``None`` if nothing does.
        heartbeat: told when an answer of the broker is expected, and when it came.
    """

    def __init__(
        self,
        app: Celery,
        runtime: AppRuntime,
        buffer: PublishBuffer | None = None,
        heartbeat: BrokerHeartbeat | None = None,
    ) -> None:
        self.buffer = buffer
        self._app = app
        self._runtime = runtime
        self._heartbeat = heartbeat
        self._connection: Any = None
        self._producer: Any = None

    def producer(self) -> Any:
        """A connected producer, whose messages the buffer can hold back.

        Raises:
            StoreUnavailable: the broker cannot be reached.
        """
        try:
            return self._ready_producer()
        except self.lost as exc:
            self.disconnect()
            self.expect_answer()
            raise StoreUnavailable(f"the broker cannot be reached: {without_echo(exc)}") from None

    @property
    def lost(self) -> tuple[type[Exception], ...]:
        """The exceptions for which the broker is to blame, and not the message."""
        # kombu counts KeyError among the errors of Redis, for the sake of its consumers. In a
        # publish it means an unknown queue or a router's mistake, and would be retried for ever.
        errors = self._connected().connection_errors
        # A Redis that is full, or a replica, refuses to declare a queue; this may pass.
        return (OperationalError, ResponseError, *(e for e in errors if e is not KeyError))

    def look_again(self) -> None:
        """Try to connect, if the broker has not answered lately."""
        if self._heartbeat is None or not self._heartbeat.awaited:
            return
        with contextlib.suppress(StoreUnavailable):
            self.producer()
            self.answered()

    def expect_answer(self) -> bool:
        """Note that the broker owes an answer; return whether it already owed one."""
        if self._heartbeat is None:
            return False
        awaited = self._heartbeat.awaited
        self._heartbeat.expect(now())
        return awaited

    def answered(self) -> None:
        """Note that the broker has answered."""
        if self._heartbeat is not None:
            self._heartbeat.suspend()

    def disconnect(self) -> None:
        """Drop the connection; the next message makes another."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.release()

    # -- connecting ------------------------------------------------------------------------

    def _ready_producer(self) -> Any:
        if self._producer is not None and self._obeys(self._producer):
            return self._producer
        self.disconnect()
        connection = self._connected()
        self._producer = self._reach(connection)
        if not self._obeys(self._producer):
            # kombu has moved to another URL, and uses its own transport there.
            connection.close()
            self._prepare(connection)
            self._producer = self._reach(connection)
        if not self._obeys(self._producer):
            raise StoreUnavailable("this broker connection cannot hold messages back")
        return self._producer

    def _obeys(self, producer: Any) -> bool:
        return self.buffer is None or obeys(producer.channel, self.buffer)

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            self._prepare(self._connection)
        return self._connection

    def _prepare(self, connection: Any) -> None:
        """Give ``connection`` our Redis transport, or have AMQP confirm what it publishes."""
        transport = connection.get_transport_cls()
        timing = self._runtime.settings.timing
        if transport.driver_type == "redis":
            buffer = self.buffer or PublishBuffer()
            connection.transport_cls = buffering_transport(
                transport, buffer, timing.operation_timeout
            )
        elif transport.driver_type == "amqp":
            # Wait no longer than a lease: then another leader publishes what was not confirmed.
            connection.transport_options = {
                "read_timeout": timing.lease_duration,
                "write_timeout": timing.lease_duration,
                **(connection.transport_options or {}),
                "confirm_publish": True,
            }

    def _reach(self, connection: Any) -> Any:
        """Connect to one of the connection's URLs, and return a producer there."""
        reach(connection)
        return counting_producer(self._app.amqp.Producer)(connection, auto_declare=False)
