"""Where the leases live, taken from the broker connection kombu has resolved.

kombu already knows the address, TLS, credentials, Sentinel, fail-over URLs and key
prefix of the broker. This module asks it, without connecting, and makes one plain
redis-py connection from the answer: with short timeouts and no retries of its own,
and not from the pools of the event loop. Nothing is parsed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.utils.url import maybe_sanitize_url
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .errors import LeaderError

_IN_PROCESS = ("memory",)
_REDIS = "redis"


class _NoClient:
    """Stands where a kombu channel expects a client, so that it does not connect."""

    def ping(self) -> None:
        """The channel's first act."""


class LeaseSource:
    """Makes connections to the Redis that keeps the leases.

    Args:
        connection: a kombu connection to it, which is never opened.
        setting: the setting that names it, for messages.
        operation_timeout: seconds that connecting, and each answer, may take.
    """

    def __init__(self, connection: Connection, *, setting: str, operation_timeout: float) -> None:
        self.setting = setting
        self._operation_timeout = operation_timeout
        self._kombu = self._with_short_timeouts(connection)
        # A Sentinel connection finds its master through its pool, by a weak reference.
        self._pool: Any = None
        self._connected = 0

    def check(self) -> None:
        """Refuse what cannot lead to any Redis; connects to nothing.

        Raises:
            LeaderError: a part of the URL or an option of the transport is wrong or missing.
        """
        try:
            self._new_pool()
        except Exception as exc:  # kombu and redis-py raise what they like here
            raise LeaderError(f"{self.setting} ({self.address}) cannot be used: {exc}") from exc

    @property
    def key_prefix(self) -> str:
        """The broker's ``global_keyprefix``; kombu adds it to some commands only."""
        return str(self._kombu.transport_options.get("global_keyprefix") or "")

    @property
    def address(self) -> str:
        """The address without its password."""
        return str(maybe_sanitize_url(self._kombu.as_uri()))

    def connect(self) -> Any:
        """A connected redis-py ``Connection``; after a failure the next call tries the next URL.

        Raises:
            redis.exceptions.RedisError, OSError: there is no connection to be had.
        """
        pool = self._new_pool()
        try:
            connection = _connected(pool)
        except BaseException:
            self._kombu.maybe_switch_next()
            raise
        self._pool = pool
        self._connected += 1
        return connection

    def connect_anywhere(self) -> Any:
        """A connection to the first of its URLs that answers, for one short visit.

        Raises:
            redis.exceptions.RedisError, OSError: none does.
        """
        for _ in self._kombu.alt[1:]:
            with contextlib.suppress(RedisError, OSError):
                return self.connect()
        return self.connect()

    def connect_beside(self) -> Any:
        """Another connection to where the last one went; it never moves on by itself.

        Raises:
            redis.exceptions.RedisError, OSError: there is no connection to be had.
        """
        return _connected(self._pool or self._new_pool())

    @property
    def connected(self) -> int:
        """How often ``connect`` has succeeded: when it grows, the place may be another."""
        return self._connected

    def follow(self, live: Connection) -> bool:
        """Go where the worker's own connection went; whether that is another place.

        Only a list of URLs can lead to another place.
        """
        if not self._kombu.alt or _place(live) == _place(self._kombu):
            return False
        self._kombu = self._with_short_timeouts(live.clone())
        return True

    def _with_short_timeouts(self, connection: Connection) -> Connection:
        options = dict(connection.transport_options or {})
        limits = {
            "socket_timeout": self._operation_timeout,
            "socket_connect_timeout": self._operation_timeout,
        }
        sentinel = {**(options.get("sentinel_kwargs") or {}), **limits, "retry": no_retry()}
        connection.transport_options = {
            **options,
            **limits,
            "health_check_interval": 0,
            "retry_on_timeout": False,
            "sentinel_kwargs": sentinel,
        }
        return connection

    def _new_pool(self) -> Any:
        transport = self._kombu.transport

        class Unconnected(transport.Channel):  # type: ignore[name-defined, misc]
            def _create_client(self, asynchronous: bool = False) -> _NoClient:
                return _NoClient()

        channel = Unconnected(transport)
        pool = channel.pool
        transport.cycle.discard(channel)
        transport.close_channel(channel)
        return pool


def lease_source(
    app: Celery, *, url: str | None, transport_options: dict[str, Any], operation_timeout: float
) -> LeaseSource | None:
    """Where the app's leases live; ``None`` for a broker that lives in this process alone.

    Raises:
        LeaderError: the broker cannot keep leases and no ``leader_url`` is set, or
            ``leader_url`` names something else than a Redis.
    """
    if url:
        setting = "leader_url"
        connection, driver = _resolved(
            lambda: Connection(url, transport_options=transport_options), setting
        )
    else:
        split = app.conf.broker_write_url != app.conf.broker_url
        setting = "broker_write_url" if split else "broker_url"
        connection, driver = _resolved(app.connection_for_write, setting)
    if driver == _REDIS:
        source = LeaseSource(connection, setting=setting, operation_timeout=operation_timeout)
        source.check()
        return source
    if url:
        raise LeaderError(
            f"leader_url ({maybe_sanitize_url(url)}) must name a Redis, as redis://,"
            f" rediss://, redis+socket:// or sentinel://; this is {driver}"
        )
    if driver in _IN_PROCESS:
        return None
    raise LeaderError(
        f"{setting} ({maybe_sanitize_url(connection.as_uri())}) is {driver}, which cannot keep"
        " leases: set leader_url to a Redis, for example redis://localhost:6379/0"
    )


def _resolved(connect: Callable[[], Connection], setting: str) -> tuple[Connection, str]:
    """A lazy connection and what kind of server it is to."""
    try:
        connection = connect()
        return connection, str(connection.transport.driver_type)
    except Exception as exc:  # kombu raises KeyError, ImportError and AttributeError here
        raise LeaderError(f"{setting} cannot be used: {' '.join(map(str, exc.args))}") from exc


def _place(connection: Connection) -> tuple[Any, ...]:
    return (connection.hostname, connection.port, connection.virtual_host)


def _connected(pool: Any) -> Any:
    connection = pool.connection_class(**_plain(pool.connection_kwargs))
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise
    return connection


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a connection that does what it is told, once."""
    # redis-py 8 would announce itself for maintenance notifications, over RESP3 only,
    # and take over timeouts and addresses when they come.
    kept = {k: v for k, v in options.items() if "maint_notifications" not in k}
    return {**kept, "protocol": 2, "retry": no_retry()}


def no_retry() -> Retry:
    """What has a redis-py connection do what it is told once."""
    return Retry(NoBackoff(), 0)
