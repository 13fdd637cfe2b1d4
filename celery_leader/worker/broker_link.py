"""Whether a worker's broker answers; it may be another server than the one with the leases.

A leader without its broker can do no work, and yet its lease is renewed. Guaranteed: a connection
that is lost, or a broker that is silent, is noticed after about a lease. A worker that is busy is
not taken for one without a broker. Not guaranteed: to notice the silence of a broker that is
neither Redis nor RabbitMQ, or silence on the worker's own connection alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu import Connection
from redis.exceptions import AuthenticationError, ResponseError

from celery_leader.core.watchdog import BrokerHeartbeat
from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import now
from celery_leader.runtime.lease_source import LeaseSource, reach
from celery_leader.runtime.log import get_logger
from celery_leader.store.client import RedisClient

logger = get_logger(__name__)

#: Transports whose broker can be asked, over a second connection, whether it is there.
_ASKABLE = ("amqp", "redis")

#: For at least so many seconds a broker that also keeps the leases may be away.
_LEAST_BESIDE_RENEWALS = 10.0


def link_of(runtime: AppRuntime) -> WorkerLink:
    """The link of this app's worker."""
    timing = runtime.settings.timing
    if runtime.redis.is_consumed_broker:
        # An outage ends the lease anyway, and Celery may take longer to connect again.
        heartbeat = BrokerHeartbeat(timing.lease_duration, _LEAST_BESIDE_RENEWALS)
        return WorkerLink(heartbeat, None, lambda: False)

    def needed() -> bool:
        # Followers need no second connection, unless they wait for an answer.
        return heartbeat.awaited or any(
            each.term is not None for each in runtime.participation.standings()
        )

    heartbeat = BrokerHeartbeat(timing.lease_duration)
    return WorkerLink(heartbeat, timing.renew_interval, needed)


class WorkerLink:
    """Watches a worker's broker from the first connection to the end of the worker.

    Args:
        heartbeat: told when the broker answers, and when it should.
        asks_every: seconds between questions over a second connection; ``None`` where the
            answers to renewals tell as much.
        needed: whether it matters now that the broker answers.
    """

    def __init__(
        self, heartbeat: BrokerHeartbeat, asks_every: float | None, needed: Callable[[], bool]
    ) -> None:
        self.heartbeat = heartbeat
        self._asks_every = asks_every
        self._needed = needed
        self._consumer: Any = None
        self._over = threading.Event()
        self._asking: threading.Thread | None = None

    def connected(self, c: Any) -> None:
        """The worker consumes from now on."""
        self._consumer = c
        self.heartbeat.suspend()
        askable = c.connection.transport.driver_type in _ASKABLE
        if askable and self._asks_every is not None and self._asking is None:
            self._asking = threading.Thread(target=self._ask, name="leader-broker", daemon=True)
            self._asking.start()

    def lost(self) -> None:
        """The worker's connection is gone."""
        self._consumer = None
        if not self._over.is_set():
            self.heartbeat.expect(now())

    def end(self) -> None:
        """The worker shuts down: a silent broker matters no more."""
        self._over.set()
        self.heartbeat.suspend()

    def _ask(self) -> None:
        assert self._asks_every is not None
        # In a thread, because the event loop itself may wait for a silent broker.
        while not self._over.wait(self._asks_every):
            c = self._consumer
            if c is None or not self._needed():
                continue
            self.heartbeat.expect(now())
            try:
                answered = answers(c.app, self.heartbeat.patience / 2)
            except Exception:
                # The thread must live on: without it, no answer is ever heard again.
                logger.exception("the broker cannot be asked whether it is there; trying on")
                continue
            if answered and self._consumer is c:
                self.heartbeat.suspend()


def answers(app: Celery, timeout: float) -> bool:
    """Whether the broker that ``app`` consumes from answers on a new connection.

    Waits for about ``timeout`` seconds. A refusal is an answer.
    """
    connection = app.connection_for_read(connect_timeout=timeout)
    if connection.transport.driver_type == "redis":
        return _redis_answers(connection, timeout)
    connection.transport_options = {
        **(connection.transport_options or {}),
        "read_timeout": timeout,
        "write_timeout": timeout,
    }
    try:
        with connection:
            reach(connection)
    except OSError:
        return False
    except Exception:  # the broker refused something, so it is there
        return True
    return True


def _redis_answers(connection: Connection, timeout: float) -> bool:
    source = LeaseSource(connection, setting="broker_url", operation_timeout=timeout)
    client = RedisClient(source.connect_anywhere, setting=source.setting, operation_timeout=timeout)
    try:
        client.call_all([["PING"]])
    except StoreUnavailable as exc:
        return isinstance(exc.__context__, ResponseError | AuthenticationError)
    finally:
        client.close()
    return True
