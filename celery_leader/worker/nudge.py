"""Ends the blocking pop of a worker that consumes from Redis."""

from __future__ import annotations

import contextlib
from typing import Any

from kombu import Consumer, Producer, Queue

from celery_leader.compat.kombu import is_popping, take_popped

_UNTAKEN = 60_000  # milliseconds; how long an empty message that nobody takes is kept
# A script, because only some versions of kombu put the key prefix before this command's key.
_EXPIRE = "return redis.call('PEXPIRE', KEYS[1], ARGV[1])"


class Nudge:
    """Ends the pop that is under way, so that the next one includes a new queue.

    On Redis kombu waits in one ``BRPOP`` on all queues for a second. An empty message to a
    queue that only this worker consumes ends that at once, and needs no second connection. The
    key is ``celery-leader:{namespace}:nudge:{node}``. A worker removes it at shutdown; the key of
    a killed worker expires.
    """

    def __init__(self, channel: Any, name: str) -> None:
        self._name = name
        self._channel = channel
        self._consumer = Consumer(
            channel, [Queue(name, durable=False)], no_ack=True, on_message=lambda _: None
        )
        self._consumer.consume()
        self._producer = Producer(channel, auto_declare=False)

    def send(self) -> None:
        """End the pop that is under way."""
        self._producer.publish(
            b"", routing_key=self._name, content_type="application/data", content_encoding="binary"
        )
        # If this worker is killed before it takes the message, nobody else ever does.
        key = self._channel.global_keyprefix + self._name
        with self._channel.conn_or_acquire() as client:
            client.eval(_EXPIRE, 1, key, _UNTAKEN)

    def finish_pop(self) -> None:
        """End the pop that is under way, and take in the message that it has popped.

        In a shutdown nobody reads the socket again until the pool has drained.
        """
        if is_popping(self._channel):
            self.send()
            take_popped(self._channel)

    def remove(self) -> None:
        """Remove the queue and its key."""
        with contextlib.suppress(Exception):
            # First the pop: one that ends after the queue was deleted would make it anew.
            self.finish_pop()
            self._consumer.cancel()
            self._channel.queue_purge(self._name)  # ``queue_delete`` finds only bound queues


def nudge_of(c: Any, namespace: str) -> Nudge | None:
    """The nudge of a worker that consumes from Redis; other brokers deliver at once."""
    if c.connection.transport.driver_type != "redis":
        return None
    return Nudge(c.task_consumer.channel, f"celery-leader:{namespace}:nudge:{c.hostname}")
