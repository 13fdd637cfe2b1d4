"""Whether a candidate hears of its broker, which may be another server than keeps the leases.

A leader that can neither get nor send a message leads to no purpose, and its lease can be
renewed all the same. Guaranteed: a worker whose connection is lost, or whose broker is silent,
for about a lease, is noticed; one that is only busy is not taken for it. Not guaranteed: that
the silence of a broker that is neither Redis nor RabbitMQ is noticed, nor silence on the
worker's own connection alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu import Connection
from redis.exceptions import AuthenticationError, ResponseError

from celery_leader.core.watchdog import BrokerHeartbeat
from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.clock import now
from celery_leader.runtime.leadership import Leadership
from celery_leader.runtime.lease_source import LeaseSource, reach
from celery_leader.store.client import RedisClient

logger = logging.getLogger(__name__)

#: Transports whose broker can be asked over one more connection whether it is there.
_ASKABLE = ("amqp", "redis")

#: Seconds that a broker may at least be away where it keeps the leases too.
_LEAST_BESIDE_RENEWALS = 10.0


def link_of(leadership: Leadership) -> WorkerLink:
    """The link of a worker of ``leadership``'s app."""
    timing = leadership.settings.timing
    if leadership.redis.is_consumed_broker:
        # An outage ends the lease by itself, and a new connection may take Celery longer.
        heartbeat = BrokerHeartbeat(timing.lease_duration, _LEAST_BESIDE_RENEWALS)
        return WorkerLink(heartbeat, None, lambda: False)

    def needed() -> bool:
        # One more connection of each leader, and of who has lost its broker, is enough.
        return heartbeat.awaited or any(
            each.term is not None for each in leadership.candidacies.standings()
        )

    heartbeat = BrokerHeartbeat(timing.lease_duration)
    return WorkerLink(heartbeat, timing.renew_interval, needed)


class WorkerLink:
    """What tells whether a worker's broker answers, from its first connection to its end.

    Args:
        heartbeat: told of what is heard.
        asks_every: seconds from one question over another connection to the next; ``None``:
            the answers to renewals tell as much.
        needed: whether it matters at this moment whether the broker answers.
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
        """The worker goes, and needs no more of its broker than to say so."""
        self._over.set()
        self.heartbeat.suspend()

    def _ask(self) -> None:
        assert self._asks_every is not None
        # A thread, since the event loop itself may wait for a silent broker.
        while not self._over.wait(self._asks_every):
            c = self._consumer
            if c is None or not self._needed():
                continue
            self.heartbeat.expect(now())
            try:
                answered = answers(c.app, self.heartbeat.patience / 2)
            except Exception:
                # Without this thread, no answer would ever be heard again.
                logger.exception("the broker cannot be asked whether it is there; trying on")
                continue
            if answered and self._consumer is c:
                self.heartbeat.suspend()


def answers(app: Celery, timeout: float) -> bool:
    """Whether the broker that ``app`` consumes from answers, over a connection of its own.

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
    except Exception:  # whatever the broker did not like, it is there
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
