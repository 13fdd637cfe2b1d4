"""Keeps leader-only tasks that this worker does not know.

In a rolling deployment the leader may be older than the sender. Celery would discard the task.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery_leader.compat.celery_worker import keep_unknown
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.log import get_logger

from .handing_over import Stray, hand_over_later, key_of

logger = get_logger(__name__)


def keep_unknown_tasks(c: Any, runtime: AppRuntime) -> None:
    """Have consumer ``c`` put unknown tasks from a leader queue back into it."""
    told: set[str] = set()

    def handle(stock: Callable[[], Any], message: Any) -> Any:
        name, queue = message.headers.get("task"), key_of(message)
        elections = {runtime.queue(election): election for election in runtime.elections()}
        if name is None or queue not in elections:
            return stock()
        if name not in told:
            told.add(name)
            logger.error(
                "task %s is leader-only and unknown to this worker; it is put back into %s"
                " until a leader knows it",
                name,
                queue,
            )
        acknowledge = functools.partial(message.ack_log_error, logger, c.connection_errors)
        # Not at once: as long as this worker leads, the message comes back to it.
        return hand_over_later(
            Stray(c.app, elections[queue], name, message, acknowledge, unknown=True)
        )

    keep_unknown(c, handle)
