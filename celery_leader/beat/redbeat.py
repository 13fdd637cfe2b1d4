"""celery-redbeat with an elected leader: ``celery beat -S leader-redbeat``.

Needs the package celery-redbeat. redbeat's own lock is not used: the election takes its
place, so a beat that loses the lead follows and goes on where redbeat's would end.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from redbeat import RedBeatScheduler, RedBeatSchedulerEntry
from redbeat.schedulers import get_redis
from redis.exceptions import RedisError

from celery_leader.errors import StoreUnavailable

from .entry_state import amended, read
from .mixin import LeaderMixin
from .plan import Tick, as_told_by, at, last_run, utc

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

    def known_entries(self) -> Collection[str]:
        """The names of the app's own entries and of all that redbeat has, due or not."""
        conf = self.app.redbeat_conf
        keys = get_redis(self.app).zrange(conf.schedule_key, 0, -1)
        return {*conf.schedule, *(key.removeprefix(conf.key_prefix) for key in keys)}

    def setup_schedule(self) -> None:
        """Nothing yet: a beat writes the app's own entries into redbeat's Redis when it leads.

        Beats of another version of the app have others there, and remove these.
        """

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        """The app's own ``entry``; if redbeat does not have it, it counts from its shared run."""
        made = super()._maybe_entry(name, entry)
        last = last_run(self._shared.get(name, ""))
        if last is not None:
            made.last_run_at = as_told_by(made, last[0])
        return made

    def tick_of(self, entry: Any, before: str) -> Tick:
        """The tick that ``entry`` is to dispatch, whose shared state is ``before``."""
        tick = Tick.of(entry, before)
        last = last_run(before)
        if last is not None and utc(last[0]) == tick.counted_from:
            return tick
        # It never ran, or ``reschedule`` set its last run; maybe to long ago, to have it run now.
        past = last is not None and tick.label < utc(last[0])
        label = utc(entry.default_now()) if past else tick.label
        return replace(tick, label=label, facts={"noted": False}).as_claimed(before)

    def reserve(self, entry: Any) -> Any:
        """Write into redbeat's Redis when ``entry`` ran last, by the shared state.

        A leader that was killed before this write leaves it to its successor. The next tick
        then counts from the run, and not from the moment when the successor noticed it.
        """
        stored = self._shared.get(entry.name, "")
        last, term = last_run(stored), self.leading_term()
        if last is None or term is None or not Tick.of(entry).is_in(stored):
            return super().reserve(entry)
        moment, _ = last
        following = entry.next(last_run_at=as_told_by(entry, moment))
        if read(stored).get("noted") is False:
            self._note(term, entry.name, stored)
        return following

    def _note(self, term: int, name: str, stored: str) -> None:
        """Note that redbeat knows of this run: who sets the old last run from now on means it."""
        assert self._dispatcher is not None
        noted = amended(stored, noted=True)
        try:
            if self._dispatcher.write(term, {name: (stored, noted)}):
                self._shared[name] = noted
            else:
                self._led_term = None  # read the shared state again before anything else
        except StoreUnavailable as exc:
            logger.debug("beat: the run of %s could not be noted: %s", name, exc)

    def take_over(self, term: int) -> bool:
        """Go on from what the last leader left, with the entries of this version of the app."""
        if not super().take_over(term):
            return False
        conf = self.app.redbeat_conf
        if not self._set_up or get_redis(self.app).smembers(conf.statics_key) != set(conf.schedule):
            super().setup_schedule()
            self._set_up = True
        self._count_anew()
        return True

    def _count_anew(self) -> None:
        """Have entries count from now if redbeat says that they ran in the future."""
        key, present = self.app.redbeat_conf.schedule_key, at(self.app.now())
        for due_later in get_redis(self.app).zrangebyscore(key, present, "+inf"):
            # Deleted meanwhile, or damaged: then it is redbeat's to say so when it is due.
            with contextlib.suppress(KeyError, ValueError, TypeError):
                entry = RedBeatSchedulerEntry.from_key(due_later, app=self.app)
                if entry.last_run_at is not None and self.is_future(entry.last_run_at):
                    # The shared moment, since any other would be an order to run it now.
                    last = last_run(self._shared.get(entry.name, ""))
                    entry.reschedule(last_run_at=last[0] if last else entry.default_now())
