"""Plans the next tick of each entry for ``-S leader``: after an election, and after each tick.

Guaranteed: if a schedule cannot tell when its entry is due, it is asked again later, and no other
entry is harmed. The only clock here is that of the entry. There is no Redis and no thread here.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any

from celery.schedules import crontab, schedule

from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import CatchUp, Settings

from .moments import add_time, timestamp, utc_text
from .plan import Plan, catch_up_of, counted_from
from .timetable import due_of, latest_missed, occurrence_after

logger = get_logger(__name__)

#: Seconds; if an entry is due within less than this, the clock was only read a moment too early.
EARLY = 1.0

_FAR = 10 * 365 * 86400.0  # seconds; later than this is as good as never

#: Celery's own ``is_due``: whether an entry is due, and in how many seconds to ask again.
IsDue = Callable[[Any], tuple[bool, float]]


class Planner:
    """Makes the plans of entries.

    Args:
        app: its ``beat_cron_starting_deadline`` says which ticks are too late to be sent.
        settings: they say how to catch up with missed ticks.
        is_due: asks an entry's schedule.
        ask_again: seconds until a schedule that cannot tell is asked again.
    """

    def __init__(self, app: Any, settings: Settings, is_due: IsDue, ask_again: float) -> None:
        self._app = app
        self._settings = settings
        self._is_due = is_due
        self._ask_again = ask_again
        self._not_enumerable: set[str] = set()

    def restored(self, entry: Any, *states: str) -> Plan | None:
        """After an election, the plan by the first of ``states`` that makes sense, if any does."""
        for state in states:
            plan = Plan.restored(entry, state)
            if plan is not None:
                return self._caught_up(self._counted_anew(plan))
            plan = Plan.of_another_schedule(entry, state)
            if plan is not None:
                return plan if plan.claimed else self._changed(plan)
        return None

    def anchored(self, entry: Any, stored: str) -> Plan:
        """A new plan of ``entry``, whose state ``stored`` is empty or makes no sense."""
        return Plan.anchored(entry, stored, self._due(entry))

    def after(self, plan: Plan, next_in: float) -> Plan:
        """The plan after the tick of ``plan`` was sent, on time or late.

        ``next_in``: in how many seconds the next tick is due, by the entry's schedule.
        """
        if self._catch_up(plan.entry) is CatchUp.ALL:
            following = occurrence_after(plan.entry.schedule, plan.due)
            if following is not None:
                return plan.dispatched(plan.due, following)
        now = plan.entry.default_now()
        entry = counted_from(plan.entry, now)
        if plan.claimed:
            # It need not be due by this beat's clock or schedule, and is over all the same.
            _, next_in = self.is_due(entry)
        return plan.dispatched(now, due_of(entry, False, next_in))

    def is_due(self, entry: Any) -> tuple[bool, float]:
        """Whether ``entry`` is due, and in how many seconds to ask again.

        If the schedule fails, the entry is not due, and is asked again after ``ask_again``.
        """
        try:
            due_now, next_in = self._is_due(entry)
        except Exception:
            logger.exception(
                "beat: cannot tell when %r is due, trying again in %s s",
                entry.name,
                self._ask_again,
            )
            return False, self._ask_again
        if not isinstance(next_in, int | float) or math.isnan(next_in):
            next_in = self._ask_again
        if due_now and isinstance(entry.schedule, crontab):
            # In the hour that clocks repeat, Celery takes what is due in its first run for due.
            due = occurrence_after(entry.schedule, entry.last_run_at)
            wait = 0.0 if due is None else timestamp(due) - timestamp(entry.default_now())
            if wait > 0:
                return False, wait
        return due_now, max(-_FAR, min(next_in, _FAR))

    def _due(self, entry: Any) -> datetime.datetime:
        return due_of(entry, *self.is_due(entry))

    def _changed(self, plan: Plan) -> Plan:
        """``plan`` with the due time by the entry's new schedule, counted from the last run."""
        plan = self._counted_anew(plan)
        due = self._due(plan.entry)
        now = plan.entry.default_now()
        missed = timestamp(due) < timestamp(now)
        if missed and occurrence_after(plan.entry.schedule, due) is not None:
            # Nobody knows when the schedule was changed, so only the latest missed tick is sent.
            due = latest_missed(plan.entry.schedule, due, now, 1)
        return self._caught_up(plan.postponed(due))

    def _counted_anew(self, plan: Plan) -> Plan:
        """``plan``, counted from now if its entry has an interval and ran in the future."""
        now = plan.entry.default_now()
        if timestamp(plan.entry.last_run_at) <= timestamp(now) + EARLY or plan.claimed:
            return plan
        if not isinstance(plan.entry.schedule, schedule):
            return plan
        # The clock was set back. Until it shows that time again, the entry would be silent.
        return self._restarted(plan, now)

    def _restarted(self, plan: Plan, now: datetime.datetime) -> Plan:
        return plan.restarted(now, self._due(counted_from(plan.entry, now)))

    # -- what was missed -----------------------------------------------------------------------

    def _caught_up(self, plan: Plan) -> Plan:
        """``plan``, moved past the missed ticks that are not to be sent."""
        now = plan.entry.default_now()
        if plan.claimed or timestamp(plan.due) >= timestamp(now):
            return plan
        mode = self._catch_up(plan.entry)
        if mode is CatchUp.NONE:
            return self._restarted(plan, now)
        plan = self._startable(plan, now)
        if mode is CatchUp.ALL and timestamp(plan.due) < timestamp(now):
            most = self._settings.beat_catch_up_max
            due = latest_missed(plan.entry.schedule, plan.due, now, most)
            if due != plan.due:
                logger.warning(
                    "beat: %s missed more than leader_beat_catch_up_max (%d) ticks;"
                    " those before %s are not sent",
                    plan.entry.name,
                    most,
                    utc_text(due),
                )
                return plan.postponed(due)
        return plan

    def _startable(self, plan: Plan, now: datetime.datetime) -> Plan:
        """``plan``, moved past the ticks that ``beat_cron_starting_deadline`` calls too late."""
        deadline = self._app.conf.beat_cron_starting_deadline
        timetable = plan.entry.schedule
        if deadline is None or not isinstance(timetable, crontab):
            return plan
        earliest = add_time(now, datetime.timedelta(seconds=-deadline))
        if timestamp(plan.due) >= timestamp(earliest):
            return plan
        startable = occurrence_after(timetable, earliest)
        return plan if startable is None else plan.postponed(startable)

    def _catch_up(self, entry: Any) -> CatchUp:
        mode = catch_up_of(entry.name, entry.options, self._settings.beat_catch_up)
        if mode is not CatchUp.ALL:
            return mode
        if occurrence_after(entry.schedule, entry.default_now()) is not None:
            return mode
        if entry.name not in self._not_enumerable:
            self._not_enumerable.add(entry.name)
            logger.warning(
                "beat: the occurrences of %s cannot be told from its schedule; what it misses"
                " is sent once",
                entry.name,
            )
        return CatchUp.ONE
