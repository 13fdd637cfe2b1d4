"""celery-redbeat with an elected leader: ``celery beat -S leader-redbeat``.

Needs the package celery-redbeat. redbeat's own lock is not used: the election takes its
place, so a beat that loses the lead follows and goes on where redbeat's would end.
"""

from __future__ import annotations

import logging
from typing import Any

from redbeat import RedBeatScheduler
from redis.exceptions import RedisError

from .beat import LeaderMixin
from .plan import Tick, as_told_by, last_run
from .redis_client import without_echo

logger = logging.getLogger(__name__)


class LeaderRedBeatScheduler(LeaderMixin, RedBeatScheduler):  # type: ignore[misc]
    """``RedBeatScheduler`` that dispatches on the leading beat only."""

    store_errors = (RedisError,)
    _set_up = False

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        self.lock_key = None

    def entries_in_memory(self) -> dict[str, Any]:
        """None: redbeat reads its entries from Redis at each turn."""
        return {}

    def setup_schedule(self) -> None:
        """Write the app's own entries into redbeat's Redis; if that cannot be, when elected."""
        try:
            super().setup_schedule()
            self._set_up = True
        except RedisError as exc:
            why = without_echo(exc)
            logger.warning("beat: redbeat_redis_url cannot be used, trying on: %s", why)

    def reserve(self, entry: Any) -> Any:
        """Write into redbeat's Redis when ``entry`` ran last, as beats share it.

        A leader that was killed between the two leaves the first to its successor: the next
        tick then counts from the run, and not from when that was noticed.
        """
        stored = self._shared.get(entry.name, "")
        last = last_run(stored)
        if last is None or self.leading_term() is None or not Tick.of(entry).is_in(stored):
            return super().reserve(entry)
        moment, _ = last
        return entry.next(last_run_at=as_told_by(entry, moment))

    def take_over(self, term: int) -> bool:
        """Go on from what the last leader left."""
        if not self._set_up:
            super().setup_schedule()
            self._set_up = True
        return super().take_over(term)
