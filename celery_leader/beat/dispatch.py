"""The dispatch of one tick: how far it came, and the message that is sent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from celery.utils import uuid

from .plan import CATCH_UP_OPTION


@dataclass(slots=True)
class Dispatch:
    """The dispatch of one tick, and how far the attempts at it came.

    Attributes:
        entry: the entry's name.
        old: the entry's state as it was read.
        claimed: its state between claim and confirmation, if these are two steps.
        new: its state after the tick.
        in_doubt: whether nobody knows if Redis carried out the last request.
        published: whether a message was published; while ``in_doubt``, whether one was in case
            Redis carried out the request.
        empty: whether there is nothing to publish, so that only the state moves.
        unsendable: whether it is empty because the message cannot be made.
    """

    entry: str
    old: str
    claimed: str
    new: str
    in_doubt: bool = False
    published: bool = False
    empty: bool = False
    unsendable: bool = False


class TickMessage:
    """The message of one tick: its headers name the tick, and each attempt has the same options.

    Args:
        entry: the schedule entry; it gets its own options back after each attempt.
        tick: the label of the tick.
        task_id: the id that the message must have. If ``None``, the entry's options give the id,
            or it is a new one.
    """

    def __init__(self, entry: Any, tick: str, task_id: str | None) -> None:
        self.entry = entry
        self._tick = tick
        self._task_id = task_id
        self._options: dict[str, Any] | None = None

    @contextlib.contextmanager
    def sent_in(self, term: int) -> Iterator[None]:
        """While open, the entry has this message's options; what a tool adds to them is kept."""
        if self._options is None:
            self._options = self._own_options()
        labels = {"leader_term": term, "leader_tick": self._tick}
        self._options["headers"] = {**(self._options.get("headers") or {}), **labels}
        own, self.entry.options = self.entry.options, self._options
        try:
            yield
        finally:
            self.entry.options = own

    def _own_options(self) -> dict[str, Any]:
        options = {k: v for k, v in self.entry.options.items() if k != CATCH_UP_OPTION}
        task_id = self._task_id or options.get("task_id") or uuid()
        return {**options, "retry": False, "task_id": task_id}
