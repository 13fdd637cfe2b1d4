"""Puts received messages back in front of their queue.

Guaranteed on Redis: many messages go back in one step. If something breaks meanwhile, each
message is in its queue or still unacknowledged. A message that another process has put back
already is not put back again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kombu.utils.json import dumps

from celery_leader.compat.kombu import (
    forget_delivery,
    list_key,
    raw_message,
    restores_by_tag,
    unacked_keys,
)
from celery_leader.store.scripts import lua

#: The most messages in one step: Redis does nothing else during a step.
STEP = 500

_PUT_BACK = lua("put_back")


def put_in_front(messages: Sequence[Any], queue: str) -> None:
    """Put received messages back in front of ``queue``, in their order.

    At most ``STEP`` messages, all of them delivered from that queue over one channel.
    """
    channel = messages[0].channel
    # The last message first, because each one is put in front of the others.
    if not restores_by_tag(channel):
        for message in reversed(messages):
            message.requeue()
        return
    # On Redis kombu would requeue a message to the end of its queue, one in each round trip.
    lists: dict[str, int] = {}
    arguments: list[Any] = []
    for message in reversed(messages):
        payload = _redelivered(raw_message(message))
        number = lists.setdefault(list_key(channel, queue, payload), len(lists) + 1)
        arguments += [message.delivery_tag, number, dumps(payload)]
    keys = [*unacked_keys(channel), *lists]
    with channel.conn_or_acquire() as client:
        client.eval(_PUT_BACK, len(keys), *keys, *arguments)
    for message in messages:
        forget_delivery(channel, message.delivery_tag)


def _redelivered(payload: dict[str, Any]) -> dict[str, Any]:
    """``payload`` with the mark that kombu gives to redelivered messages."""
    properties = dict(payload.get("properties") or {})
    if isinstance(properties.get("delivery_info"), dict):
        properties["delivery_info"] = {**properties["delivery_info"], "redelivered": True}
    headers = {**(payload.get("headers") or {}), "redelivered": True}
    return {**payload, "headers": headers, "properties": properties}
