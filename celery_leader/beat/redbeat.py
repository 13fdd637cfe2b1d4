"""celery-redbeat with an elected leader: ``celery beat -S leader-redbeat``.

Needs the package celery-redbeat. The election takes the place of redbeat's own lock. A deposed beat
becomes a follower; with redbeat's own scheduler, a beat that loses the lock ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from redbeat import RedBeatScheduler, RedBeatSchedulerEntry
from redbeat.schedulers import get_redis
from redis.exceptions import RedisError

from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.log import get_logger

from .entry_state import last_run, read
from .mixin import LeaderMixin
from .moments import in_zone_of, timestamp, utc_text
from .plan import Tick

logger = get_logger(__name__)


class LeaderRedBeatScheduler(LeaderMixin, RedBeatScheduler):  # type: ignore[misc]
    """``RedBeatScheduler`` that dispatches on the leading beat only."""

    store_errors = (RedisError,)
    _set_up = False

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        self.lock_key = None

    def entries_in_memory(self) -> dict[str, Any]:
        """No entries: redbeat reads them from Redis at each turn."""
        return {}

    def known_entries(self) -> Collection[str]:
        """The names of the app's own entries and of all entries of redbeat, due or not."""
        conf = self.app.redbeat_conf
        keys = get_redis(self.app).zrange(conf.schedule_key, 0, -1)
        return {*conf.schedule, *(key.removeprefix(conf.key_prefix) for key in keys)}

    def setup_schedule(self) -> None:
        """Do nothing yet: only a leader writes the app's own entries into redbeat's Redis.

        A beat with another version of the app has other entries, and would remove the leader's.
        """

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        """The app's own ``entry``, counted from the shared last run if there is one."""
        made = super()._maybe_entry(name, entry)
        last = last_run(self._states.of(name))
        if last is not None:
            made.last_run_at = in_zone_of(made, last[0])
        return made

    def tick_of(self, entry: Any, before: str) -> Tick:
        """The next tick of ``entry``; ``before`` is the entry's shared state."""
        tick = Tick.of(entry, before)
        last = last_run(before)
        if last is not None and utc_text(last[0]) == tick.counted_from:
            return tick
        # The entry never ran, or ``reschedule`` set its last run, maybe back, to have it run now.
        past = last is not None and tick.label < utc_text(last[0])
        label = utc_text(entry.default_now()) if past else tick.label
        return replace(tick, label=label, facts={"noted": False}).as_claimed(before)

    def reserve(self, entry: Any) -> Any:
        """Write the shared last run of ``entry`` into redbeat's Redis.

        If a leader is killed before this write, its successor does it. The next tick then counts
        from the run, and not from the moment when the successor noticed it.
        """
        stored = self._states.of(entry.name)
        last, term = last_run(stored), self.leading_term()
        if last is None or term is None or not Tick.of(entry).is_in(stored):
            return super().reserve(entry)
        moment, _ = last
        following = entry.next(last_run_at=in_zone_of(entry, moment))
        if read(stored).get("noted") is False:
            try:
                # redbeat has stored this run. If the old last run returns, a user has set it.
                self._amend(term, {entry.name: {"noted": True}})
            except StoreUnavailable as exc:
                logger.debug("beat: the run of %s could not be noted: %s", entry.name, exc)
        return following

    def take_over(self, term: int) -> bool:
        """Go on from where the last leader stopped, with the entries of this app's version."""
        if not super().take_over(term):
            return False
        conf = self.app.redbeat_conf
        if not self._set_up or get_redis(self.app).smembers(conf.statics_key) != set(conf.schedule):
            super().setup_schedule()
            self._set_up = True
        self._count_anew()
        return True

    def _count_anew(self) -> None:
        """Correct each entry that ran in the future, as redbeat says: set its last run back."""
        key, present = self.app.redbeat_conf.schedule_key, timestamp(self.app.now())
        for due_later in get_redis(self.app).zrangebyscore(key, present, "+inf"):
            # An entry may be deleted meanwhile, or damaged; redbeat says so when it is due.
            with contextlib.suppress(KeyError, ValueError, TypeError):
                entry = RedBeatSchedulerEntry.from_key(due_later, app=self.app)
                if entry.last_run_at is not None and self.is_future(entry.last_run_at):
                    # The shared moment: any other is taken for an order to run now.
                    last = last_run(self._states.of(entry.name))
                    entry.reschedule(last_run_at=last[0] if last else entry.default_now())
