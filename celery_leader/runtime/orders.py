"""Orders that anybody may give to the candidates of an election, over its record in Redis.

A leader carries out an order when its running work has ended: the leader-only bodies of a worker,
or the dispatch of a beat.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from celery_leader.core.lease import Record
from celery_leader.core.names import check_node
from celery_leader.errors import LeaderError, StoreUnavailable

from .clock import now
from .context import AppContext
from .session import LeaseRedis

_PAUSE = 0.05  # seconds between looks at a record where waiting for news does not work
_LONGEST_HOLD = 10 * 365 * 86400  # seconds


@dataclass(frozen=True, slots=True)
class Handover:
    """What came of asking a leader to give its lease up.

    Attributes:
        election: its name.
        former: the leader that was asked; it may lead still.
        former_term: the former leader's term.
        leader: who leads with a later term, or ``None`` if nobody did in time.
        term: the later term.
    """

    election: str
    former: str
    former_term: int
    leader: str | None
    term: int | None


class Orders:
    """Gives orders, over a connection of its own."""

    def __init__(self, context: AppContext, redis: LeaseRedis) -> None:
        self._context = context
        self._redis = redis

    def hand_over(
        self,
        election: str,
        successor: str | None = None,
        *,
        timeout: float,
        at_once: bool = False,
    ) -> Handover:
        """Have the leader give its lease up, and wait for the next leader.

        The lease goes to ``successor`` if one is named. If not, the other candidates come
        first; where there is none, the same node leads again. ``at_once``: bodies that can be
        aborted (``on_deposed="abort"``) are, and are not waited for.

        Raises:
            LeaderError: nobody leads, or the lease cannot go to ``successor``.
            StoreUnavailable: Redis did not answer. The order may have been given.
        """
        deadline = now() + timeout
        patience = self._context.settings.timing.operation_timeout
        with self._redis.session() as session:
            store = session.store
            asked = store.register.ask(election, successor, at_once=at_once)
            cursor, record = asked.cursor, store.read(election)
            while not _led_anew(record, asked.term) and (left := deadline - now()) > 0:
                try:
                    news = store.announcements({election: cursor}, left, None, patience)
                    cursor = news[-1].cursor if news else cursor
                except StoreUnavailable:
                    # A Redis user may have no right to a blocking read, but can read the record.
                    threading.Event().wait(min(_PAUSE, left))
                record = store.read(election)
        later = record if _led_anew(record, asked.term) else None
        return Handover(
            election,
            asked.holder,
            asked.term,
            leader=later.holder if later else None,
            term=later.term if later else None,
        )

    def hold(
        self,
        node: str,
        elections: Iterable[str],
        duration: float | None = None,
        *,
        at_once: bool = False,
    ) -> dict[str, bool]:
        """Keep ``node`` out of ``elections``, for ``duration`` seconds if given.

        Returns for each of them whether ``node`` is a candidate there. Where ``node`` leads, it
        gives its lease up; ``at_once`` as with ``hand_over``.

        Raises:
            LeaderError: the name or the duration cannot be used.
            StoreUnavailable: Redis did not answer. Some elections may know of the order.
        """
        check_node(node)
        if duration is not None and not 0 < duration <= _LONGEST_HOLD:
            raise LeaderError(
                f"a hold of {duration:g} s is not possible: it must be above 0 and"
                f" {_LONGEST_HOLD:,} s at most"
            )
        with self._redis.session() as session:
            hold = session.store.register.hold
            return {name: hold(name, node, duration, at_once=at_once) for name in elections}

    def free(self, node: str, elections: Iterable[str]) -> dict[str, bool]:
        """Let ``node`` into ``elections`` again; returns for each whether it was held.

        Raises:
            LeaderError: the name cannot be used.
            StoreUnavailable: Redis did not answer. Some elections may know of the order.
        """
        check_node(node)
        with self._redis.session() as session:
            return {name: session.store.register.free(name, node) for name in elections}


def _led_anew(record: Record | None, term: int) -> bool:
    return record is not None and record.led and record.term > term
