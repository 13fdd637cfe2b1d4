"""Connections to the Redis that keeps an app's leases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from celery_leader.compat.kombu import (
    keeps_lists,
    queue_lists,
    unacked_keys,
    unconnected_channel,
)
from celery_leader.errors import LeaderError
from celery_leader.store.client import RedisClient
from celery_leader.store.in_flight import QueueKeys
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.scripts import Keys

from .context import AppContext
from .lease_source import LeaseSource
from .settings import BEAT


@dataclass(frozen=True, slots=True)
class RedisSession:
    """A short connection to the Redis that keeps the leases.

    Attributes:
        client: the connection.
        store: the leases, over that connection.
        keys: the names of this app's keys.
        setting: the setting that names this Redis.
        address: where it is, without a password.
    """

    client: RedisClient
    store: RedisLeaseStore
    keys: Keys
    setting: str
    address: str


class LeaseRedis:
    """The Redis that keeps this app's leases.

    Attributes:
        session_timeout: seconds that an answer in a session may take. ``None`` means
            ``leader_operation_timeout``, as for an answer about a lease.
    """

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._source: LeaseSource | None = None
        self.session_timeout: float | None = None
        context.forks.call_in_child(self._after_fork)

    # -- short connections, for any thread ------------------------------------

    @contextlib.contextmanager
    def session(self) -> Iterator[RedisSession]:
        """A connection of its own, closed at the end.

        Raises:
            LeaderError: this app's elections are in no Redis.
        """
        patience = self.session_timeout or self._context.settings.timing.operation_timeout
        source = self._context.lease_source(patience)
        if source is None:
            raise LeaderError("this app's broker is in-process memory: it keeps no elections")
        client = RedisClient(
            source.connect_anywhere, setting=source.setting, operation_timeout=patience
        )
        keys = self._keys(source)
        try:
            yield RedisSession(
                client, self._store(client, keys), keys, source.setting, source.address
            )
        finally:
            client.close()

    # -- the connection of the elections, and what goes beside it -------------

    def open(self) -> RedisLeaseStore:
        """The leases, over the connection that the elections of this process share."""
        self._source = source = self._context.lease_source()
        assert source is not None
        client = RedisClient(
            source.connect,
            setting=source.setting,
            operation_timeout=self._context.settings.timing.operation_timeout,
        )
        return self._store(client, self._keys(source))

    def client_beside(self) -> RedisClient:
        """A connection to the place of the elections' own connection, for one thread.

        It follows when that connection goes elsewhere, because a leader must write where its
        lease is.
        """
        source = self._opened
        return RedisClient(
            source.connect_beside,
            setting=source.setting,
            operation_timeout=self._context.settings.timing.operation_timeout,
            place=lambda: source.connected,
        )

    @property
    def keys(self) -> Keys:
        """The names of this app's keys."""
        return self._keys(self._opened)

    def follow(self, live: Any) -> bool:
        """Note that the worker's consumer uses ``live``; return whether the leases moved there."""
        if self._source is None or not self.is_consumed_broker:
            return False
        return self._source.follow(live)

    # -- which Redis it is ----------------------------------------------------

    @property
    def is_broker(self) -> bool:
        """Whether messages and leases live in the same Redis, so that one script can do both."""
        return not self._context.always_leads() and self._context.settings.url is None

    @property
    def is_consumed_broker(self) -> bool:
        """Whether the leases are on the broker that this app's workers consume from."""
        conf = self._context.app.conf
        return self.is_broker and conf.broker_write_url == conf.broker_read_url

    def queue_keys(self, elections: Iterable[str], keys: Keys) -> dict[str, QueueKeys]:
        """The keys of leader queues, by election; connects to nothing.

        Empty where workers do not fetch leader-only messages from the Redis of the leases.
        """
        if not self.is_consumed_broker:
            return {}
        with (
            self._context.app.connection_for_read() as connection,
            unconnected_channel(connection) as channel,
        ):
            if not keeps_lists(connection.transport):
                return {}
            unacked = unacked_keys(channel)
            queues = {name: self._context.queue(name) for name in elections if name != BEAT}
            return {
                name: QueueKeys(name, queue, unacked, queue_lists(channel, queue), keys)
                for name, queue in queues.items()
            }

    def banner(self, election: str) -> str:
        """One line for banners: which election, and which Redis keeps it."""
        source = self._context.lease_source()
        return f"{election} @ {source.address if source else 'this process alone'}"

    # -- small parts ----------------------------------------------------------

    @property
    def _opened(self) -> LeaseSource:
        assert self._source is not None
        return self._source

    def _keys(self, source: LeaseSource) -> Keys:
        return Keys(self._context.settings.namespace, source.key_prefix)

    def _store(self, client: RedisClient, keys: Keys) -> RedisLeaseStore:
        settings = self._context.settings
        return RedisLeaseStore(
            client, keys, history_size=settings.history_size, wait_replicas=settings.wait_replicas
        )

    def _after_fork(self, parent: int) -> None:
        self._source = None
