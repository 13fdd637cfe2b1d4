"""Where the leases live, taken from the broker connection that kombu has resolved.

kombu already knows the address, TLS, credentials, Sentinel, fail-over URLs and key prefix of the
broker. This module asks it, without connecting, and makes one plain redis-py connection from the
answer. That connection has short timeouts and no retries, and does not come from the pools of the
event loop. Guaranteed: no message from here shows a value that may be a password. A URL that can be
read in two ways is refused, and is not shown.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from celery import Celery
from kombu import Connection
from kombu.utils.url import maybe_sanitize_url
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from celery_leader.compat.kombu import connection_pool
from celery_leader.errors import LeaderError, kind_of

_IN_PROCESS = ("memory",)
_REDIS = "redis"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USER_ALONE = re.compile(r"(?<=//)[^/]*@")


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
        # Kept alive: a Sentinel connection has only a weak reference to the pool that finds its
        # master.
        self._pool: Any = None
        self._connected = 0

    def check(self) -> None:
        """Refuse URLs and options with which no Redis can be reached; connects to nothing.

        Raises:
            LeaderError: a part of a URL or an option of the transport is wrong or missing.
        """
        self._check(self._kombu, f"{self.setting} ({self.address})")
        for number, url in enumerate(self._kombu.alt[1:], start=2):
            what = f"{self.setting} (its URL number {number})"
            connection = self._kombu.clone()
            try:
                connection.switch(url)
            except Exception as exc:  # as below
                raise _unusable(what, exc, url) from None
            self._check(connection, what)

    def _check(self, connection: Connection, what: str) -> None:
        try:
            driver = connection.transport.driver_type
            if driver == _REDIS:
                connection_pool(connection)
        except Exception as exc:  # kombu and redis-py raise what they like here
            secrets = (connection.userid, connection.password, connection.transport_options)
            raise _unusable(what, exc, (*secrets, connection.alt)) from None
        if driver != _REDIS:
            raise LeaderError(f"{what} must name a Redis; this is {driver}")

    @property
    def key_prefix(self) -> str:
        """The broker's ``global_keyprefix``; kombu adds it to some commands only."""
        return str(self._kombu.transport_options.get("global_keyprefix") or "")

    @property
    def address(self) -> str:
        """The address without its password."""
        return _address(self._kombu)

    def connect(self) -> Any:
        """A connected redis-py ``Connection``; after a failure the next call tries the next URL.

        Raises:
            redis.exceptions.RedisError, OSError: there is no connection to be had.
        """
        pool = connection_pool(self._kombu)
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
        """Another connection to where the last one went; a failure switches to no other URL.

        Raises:
            redis.exceptions.RedisError, OSError: there is no connection to be had.
        """
        return _connected(self._pool or connection_pool(self._kombu))

    @property
    def connected(self) -> int:
        """How often ``connect`` has succeeded; each time, the place may be another."""
        return self._connected

    def follow(self, live: Connection) -> bool:
        """Go where the worker's own connection ``live`` went; return whether that is another place.

        Only with a list of URLs it can be another place.
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
        own = options.get("sentinel_kwargs") or {}
        if not isinstance(own, Mapping):
            raise LeaderError(
                f"sentinel_kwargs, for {self.setting}, is {kind_of(own)}: it must be a dict"
            )
        sentinel = {**own, **limits, "retry": no_retry()}
        connection.transport_options = {
            **options,
            **limits,
            "health_check_interval": 0,
            "retry_on_timeout": False,
            "sentinel_kwargs": sentinel,
        }
        return connection


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
        _check_urls(url, setting, need_scheme=True)
        connection, driver = _resolved(
            lambda: Connection(url, transport_options=transport_options), setting, url
        )
    else:
        split = app.conf.broker_write_url != app.conf.broker_url
        setting = "broker_write_url" if split else "broker_url"
        broker = app.conf.broker_write_url
        _check_urls(broker, setting)
        connection, driver = _resolved(app.connection_for_write, setting, broker)
    if driver == _REDIS:
        source = LeaseSource(connection, setting=setting, operation_timeout=operation_timeout)
        source.check()
        return source
    if url:
        raise LeaderError(
            f"leader_url ({_address(connection)}) must name a Redis, as redis://,"
            f" rediss://, redis+socket:// or sentinel://; this is {driver}"
        )
    if driver in _IN_PROCESS:
        return None
    named = all(_SCHEME.match(each) for each in _urls(app.conf.broker_write_url))
    where = f" ({_address(connection)})" if named else ""
    raise LeaderError(
        f"{setting}{where} is {driver}, which cannot keep"
        " leases: set leader_url to a Redis, for example redis://localhost:6379/0"
    )


def reach(connection: Connection) -> None:
    """Connect to the first of its URLs that answers.

    Raises:
        Exception: one of the connection errors of kombu's transport.
    """
    # Not connect(), which sleeps for two seconds before its second attempt.
    connection.ensure_connection(
        max_retries=max(1, len(connection.alt)),
        interval_start=0,
        interval_step=0,
        reraise_as_library_errors=False,
    )


def _resolved(
    connect: Callable[[], Connection], setting: str, secret: Any
) -> tuple[Connection, str]:
    """A lazy connection, and the kind of its server."""
    try:
        connection = connect()
        return connection, str(connection.transport.driver_type)
    except Exception as exc:  # kombu raises KeyError, ImportError and AttributeError here
        raise _unusable(setting, exc, secret) from None


# -- showing a URL without its secrets ----------------------------------------------


def _check_urls(value: Any, setting: str, *, need_scheme: bool = False) -> None:
    """Refuse a URL in which a part of the password would be taken for something else, and shown.

    Raises:
        LeaderError: there is such a URL; the message does not show it.
    """
    for url in _urls(value):
        if need_scheme and not _SCHEME.match(url):
            raise LeaderError(
                f"{setting} has no scheme: it must begin with redis://, rediss://, redis+socket://"
                " or sentinel://"
            )
        if not _is_clear(url):
            raise LeaderError(
                f"{setting} cannot be read: it must be scheme://user:password@host:port/... with"
                " any / # ? @ ; [ or ] of user and password escaped, as %2F %23 %3F %40 %3B %5B %5D"
            )


def _is_clear(url: str) -> bool:
    """Whether ``url`` can be read in one way only."""
    if not _SCHEME.match(url):
        return "@" not in url
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    if "@" in parts.path + parts.fragment:
        return parts.scheme.endswith("socket") and ("@" in parts.netloc or not parts.netloc)
    return "@" in parts.netloc or "@" not in parts.query


def _urls(value: Any) -> list[str]:
    """The URLs in a setting: a text with ``;`` between them, or a list of such texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return []
    return [url for text in texts if isinstance(text, str) for url in text.split(";") if url]


def _address(connection: Connection) -> str:
    """The address of ``connection`` without its password.

    A user name without a password may itself be the password, and is not shown either.
    """
    address = str(maybe_sanitize_url(connection.as_uri()))
    alone = connection.userid and not connection.password
    return _USER_ALONE.sub("**@", address) if alone else address


def _unusable(what: str, exc: Exception, secrets: Any) -> LeaderError:
    """The error that ``what`` cannot be used; a reason with a part of ``secrets`` is not shown."""
    why = " ".join(map(str, exc.args)) or type(exc).__name__
    if any(piece in why for piece in _pieces(secrets)):
        why = f"{type(exc).__name__}, of which no more is shown, as it quotes a value"
    return LeaderError(f"{what} cannot be used: {why}")


def _pieces(value: Any) -> Iterator[str]:
    """Every text in ``value`` that may be a password, or a part of one."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _pieces(each)
    elif isinstance(value, bytes):
        yield from _pieces(value.decode(errors="replace"))
    elif isinstance(value, str):
        before, _, rest = value.partition("://")
        if not rest:
            rest = before
        elif "@" in rest:
            rest = rest.rpartition("@")[0]
        else:
            rest = " ".join(told for _, told in parse_qsl(urlsplit(value).query))
        for piece in re.split(r"[\s:/?#@;]+", rest):
            yield from {each for each in (piece, unquote(piece)) if len(each) > 2}


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
    """The options of a connection without retries and without maintenance notifications."""
    # redis-py 8 would ask for such notifications, which need RESP3. When one comes, it changes
    # timeouts and addresses.
    kept = {k: v for k, v in options.items() if "maint_notifications" not in k}
    return {**kept, "protocol": 2, "retry": no_retry()}


def no_retry() -> Retry:
    """A retry policy with which a redis-py connection tries everything once only."""
    return Retry(NoBackoff(), 0)
