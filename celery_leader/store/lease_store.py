"""Leases in Redis: one hash per election, judged by the server's clock.

Guaranteed: whatever is in the keys, an answer is a value, or ``StoreUnavailable`` with a sentence.
Not guaranteed: that Redis keeps the record; ``election.py`` says what a candidate does then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_leader.core.lease import Acquire, Announcement, Granted, Record, Renew, Reply, Request
from celery_leader.errors import StoreUnavailable

from .client import RedisClient, Script
from .register import Register
from .scripts import ACQUIRE, READ, RELEASE, RENEW, Keys
from .wire import (
    acquire_arguments,
    read_announcement,
    read_record,
    read_reply,
    release_arguments,
    renew_arguments,
    text,
)


class RedisLeaseStore:
    """The ``LeaseStore`` over a ``RedisClient``.

    Args:
        client: the connection; owned by the store from here on.
        keys: where to write.
        history_size: how many lines of history each election keeps.
        wait_replicas: how many replicas must have a lease before it counts as granted.

    Attributes:
        register: who takes part, and the orders that people give.
    """

    def __init__(
        self,
        client: RedisClient,
        keys: Keys,
        *,
        history_size: int = 256,
        wait_replicas: int = 0,
    ) -> None:
        self.client = client
        self.keys = keys
        self.register = Register(client, keys, history_size)
        self._history_size = history_size
        self._wait_replicas = wait_replicas

    def close(self) -> None:
        """Drop the connection; the next call makes another."""
        self.client.close()

    def perform(self, requests: Sequence[Request]) -> list[Reply | StoreUnavailable]:
        """Answer ``requests`` in one round trip; see ``LeaseStore``."""
        answers = self.client.run([self._call(request) for request in requests])
        replies = [
            answer if isinstance(answer, StoreUnavailable) else self._reply(request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]
        return self._confirmed(replies) if self._wait_replicas else replies

    def _confirmed(self, replies: list[Reply | StoreUnavailable]) -> list[Reply | StoreUnavailable]:
        """``replies``; a grant that too few replicas have becomes an unknown answer."""
        if not any(isinstance(reply, Granted) for reply in replies):
            return replies
        try:
            self.client.wait_for_replicas(self._wait_replicas)
        except StoreUnavailable as exc:
            return [exc if isinstance(reply, Granted) else reply for reply in replies]
        return replies

    def announcements(
        self, cursors: dict[str, str], timeout: float, wake: int | None, patience: float = 1.0
    ) -> list[Announcement]:
        """Wait for news; see ``LeaseStore``."""
        names = {self.keys.of("history", name): name for name in cursors}
        block = max(1, int(timeout * 1000))
        reply = self.client.wait_for(
            ["XREAD", "BLOCK", block, "STREAMS", *names, *cursors.values()],
            timeout,
            wake,
            patience,
        )
        return [
            read_announcement(names[text(key)], cursor, fields)
            for key, entries in reply or ()
            for cursor, fields in entries
        ]

    def read(self, election: str) -> Record | None:
        """The record of ``election``, or ``None``.

        Raises:
            StoreUnavailable: Redis did not answer, or the record is damaged.
        """
        what, server_us, fields = self.client.run_one(READ, self.keys.election(election), [])
        try:
            return None if what == b"missing" else read_record(fields, int(server_us) / 1e6)
        except (ValueError, TypeError) as exc:
            raise self.client.damaged(self.keys.of("election", election)) from exc

    def _reply(self, request: Request, answer: list[Any]) -> Reply | StoreUnavailable:
        try:
            return read_reply(request, answer)
        except (ValueError, TypeError):
            return self.client.damaged(self.keys.of("election", request.election))

    def _call(self, request: Request) -> tuple[Script, list[str], list[Any]]:
        keys = self.keys.election(request.election)
        match request:
            case Acquire():
                return ACQUIRE, keys, acquire_arguments(request, self._history_size)
            case Renew():
                return RENEW, keys, renew_arguments(request)
        return RELEASE, keys, release_arguments(request, self._history_size)
