"""``celery beat -S leader``: shared state, and each tick dispatched once.

The schedule is the app's ``beat_schedule`` and its ``add_periodic_task`` entries. The last run of
each is in Redis, beside the lease, and in no local file. Guaranteed: a tick stays due until it is
sent, or until its message proves impossible to make. A tick that cannot be sent while others can
waits, and holds up no other.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import beat

from celery_leader.errors import LeaderError, StoreUnavailable, kind_of
from celery_leader.runtime.command_line import refusing_clearly
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.settings import CatchUp

from .dispatch import Dispatch, TickMessage
from .elected import ElectedScheduler
from .moments import timestamp, utc_text
from .plan import Plan, catch_up_of, counted_from
from .planner import EARLY, Planner
from .retries import LONGEST_PAUSE
from .timetable import due_of

logger = get_logger(__name__)

_LONGEST_ASIDE = 30.0  # seconds; the longest pause between tries at a tick that was set aside


class LeaderScheduler(ElectedScheduler, beat.Scheduler):  # type: ignore[misc]
    """The scheduler of ``celery beat -S leader``."""

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._plans: dict[str, Plan] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._pushed = 0
        self._known: dict[str, Any] = {}
        self._left_alone = 0
        #: The number of depositions when the plans were made; ``None``: there are no plans.
        self._planned_after: int | None = None
        # The entries for which the app itself says when they ran last.
        self._given: set[str] = set()
        self._clock_read = 0.0
        self._sendings: dict[str, _Sending] = {}
        self._raised: Exception | None = None
        # By entry that cannot be sent while others can: how often it was tried.
        self._aside: dict[str, int] = {}
        with refusing_clearly():
            # Checked here, because the first instance, the banner's, never sets up its schedule.
            for name, fields in _checked(app.conf.beat_schedule):
                catch_up_of(name, fields.get("options"), CatchUp.ONE)
                if fields.get("last_run_at"):
                    self._given.add(name)
        super().__init__(app, *args, **kwargs)
        with refusing_clearly():
            settings = self._runtime.settings
        # Look ``is_due`` up by its name each time, since tools replace it.
        self._planner = Planner(app, settings, lambda each: self.is_due(each), self.max_interval)

    def add(self, **kwargs: Any) -> Any:
        """Add an entry while beat runs; it counts from ``last_run_at`` if that is given."""
        entry = super().add(**kwargs)
        if kwargs.get("last_run_at"):
            self._given.add(entry.name)
        return entry

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Publish the message of ``entry``; ``lead`` claims the tick with it.

        If this fails, it returns ``None`` and keeps the exception for ``_publish``. The caller
        ``apply_entry`` would only log an exception, and raise nothing.
        """
        try:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        except Exception as exc:
            self._raised = exc
            return None

    def _warn(self) -> None:
        super()._warn()
        if type(self) is LeaderScheduler:
            self._warn_of_unread_rows()

    # -- taking over -------------------------------------------------------------------------

    def take_over(self, term: int) -> bool:
        """Plan all entries by the shared state, and store new states; return if Redis agreed."""
        depositions = self._candidate.depositions
        if not super().take_over(term):
            return False
        plans = {
            name: self._planned(entry, self._states.of(name)).of_project(self._states.project)
            for name, entry in self.schedule.items()
            if not self._states.is_left_alone(name)
        }
        fresh = {
            name: plan.state for name, plan in plans.items() if plan.state != self._states.of(name)
        }
        if not self._states.write(term, fresh):
            return False
        self._plans, self._planned_after = plans, depositions
        self._left_alone = len(self.schedule) - len(plans)
        self._queue = []
        self._aside = {}
        self._sendings = {}
        for name, plan in plans.items():
            self.schedule[name] = plan.entry
            self._push(name, plan)
        self._known = dict(self.schedule)
        self._clock_read = timestamp(self.app.now())
        return True

    def _planned(self, entry: Any, stored: str) -> Plan:
        """The plan of ``entry``, whose state in Redis is ``stored``."""
        plan = self._planner.restored(entry, stored, self._remembered(entry.name))
        if plan is not None:
            return plan
        if entry.name not in self._given:
            entry = counted_from(entry, entry.default_now())
        return self._planner.anchored(entry, stored)

    def _remembered(self, name: str) -> str:
        """The state that this beat wrote, in case Redis lost it; empty if it was deposed since."""
        if self._planned_after != self._candidate.depositions or name not in self._plans:
            return ""
        return self._plans[name].state

    # -- leading -----------------------------------------------------------------------------

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """Dispatch the entry that has been due for longest; return how long to rest."""
        if len(self._plans) + self._left_alone != len(self.schedule):
            self._take_over_again()
            return 0
        if not self._queue:
            return float(self.max_interval)
        due, _, name = self._queue[0]
        plan = self._plans[name]
        wait = due - timestamp(plan.entry.default_now())
        # Compare all entries only before a rest: it takes long, and many entries may be due.
        changed = wait > 0 and (self._known != self.schedule or self._clock_went_back())
        if changed or self.schedule.get(name) is not plan.entry:
            self._take_over_again()  # entries came, went or changed, or the clock went back
            return 0
        if wait > 0:
            return float(min(wait, self.max_interval))
        return self._go_on(name, plan)

    def _go_on(self, name: str, plan: Plan) -> float:
        """Dispatch the tick of an entry that is due, or note when it is due instead."""
        due_now, next_in = self._planner.is_due(plan.entry)
        due_now = due_now or plan.claimed  # it may have been published, which must be confirmed
        if not due_now and next_in <= EARLY:
            self._push_later(name, next_in)
            return 0
        term = self.leading_term()
        if term is None:
            return 0
        try:
            if due_now:
                following, agreed = self._dispatch(name, plan, next_in, term)
            else:
                following = plan.postponed(due_of(plan.entry, False, next_in))
                agreed = self._shared_store.write(term, {str(name): (plan.state, following.state)})
        except StoreUnavailable as exc:
            return self._set_aside(name, term, exc)
        self._sendings.pop(name, None)
        if agreed:
            heapq.heappop(self._queue)
            self._plans[name] = following
            self._known[name] = self.schedule[name] = following.entry
            self._push(name, following)
        else:
            self._take_over_again()
        if self._aside.pop(name, 0) > 1:
            logger.info("beat: %s can be sent again", name)
        self._retries.succeeded()
        return 0

    def _dispatch(self, name: str, plan: Plan, next_in: float, term: int) -> tuple[Plan, bool]:
        """Send this tick's message; return the next plan, and whether Redis agreed to store it."""
        sending = self._sendings.get(name)
        if sending is None:
            sending = self._sendings[name] = self._new_sending(name, plan)
        in_doubt = sending.dispatch.in_doubt
        if not self._dispatcher.was_sent(sending.dispatch):
            if in_doubt:
                _, next_in = self._planner.is_due(plan.entry)  # asking Redis took a while
            # Counted from now, and not from when the first attempt failed.
            sending.following = self._planner.after(plan, next_in)
            sending.dispatch.new = sending.following.state
        agreed = self._dispatcher.send(term, sending.dispatch, partial(self._publish, sending))
        return sending.following, agreed

    def _new_sending(self, name: str, plan: Plan) -> _Sending:
        label = utc_text(plan.due)
        message = TickMessage(plan.entry, label, self._own_id(name, label))
        # A message that is sent apart from its claim needs a state in between.
        claimed = plan.state if self._dispatcher.fences_messages else plan.claim().state
        return _Sending(plan, Dispatch(str(name), plan.state, claimed, ""), message)

    def _publish(self, sending: _Sending, producer: Any, term: int) -> None:
        self._raised = None
        entry = sending.message.entry
        with sending.message.sent_in(term):
            if sending.entered:
                self.apply_async(entry, producer=producer, advance=False)
            else:
                # Monitoring tools watch ``apply_entry``, so call it once for each tick.
                sending.entered = True
                self.apply_entry(entry, producer=producer)
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def _set_aside(self, name: str, term: int, exc: StoreUnavailable) -> float:
        """Keep this tick due, queued for a later try if others can be sent; return the pause."""
        if name not in self._aside and not self._dispatcher.sends_others(term):
            self._retries.failed(name, exc)
            return self._pause()
        tries = self._aside[name] = self._aside.get(name, 0) + 1
        if tries == 1:
            return 0  # a connection may have been lost; the next try makes a new one
        if tries == 2:
            logger.error("beat: %s stays due, but cannot be sent as others are: %s", name, exc)
        self._push_later(name, min(LONGEST_PAUSE * 2 ** (tries - 2), _LONGEST_ASIDE))
        return 0

    # -- the queue -----------------------------------------------------------------------------

    def _clock_went_back(self) -> bool:
        before, self._clock_read = self._clock_read, timestamp(self.app.now())
        return self._clock_read < before - EARLY

    def _push(self, name: str, plan: Plan) -> None:
        self._pushed += 1
        due = 0.0 if plan.claimed else timestamp(plan.due)
        heapq.heappush(self._queue, (due, self._pushed, name))

    def _push_later(self, name: str, next_in: float) -> None:
        self._pushed += 1
        again = timestamp(self._plans[name].entry.default_now()) + next_in
        heapq.heapreplace(self._queue, (again, self._pushed, name))


@dataclass(slots=True)
class _Sending:
    """A tick that is being sent, in as many attempts as it takes."""

    #: The plan after the tick was sent.
    following: Plan
    dispatch: Dispatch
    message: TickMessage
    #: Whether ``apply_entry`` was called for it.
    entered: bool = False


def _checked(entries: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a ``beat_schedule``, with their fields.

    Raises:
        LeaderError: it is not a schedule.
    """
    if not isinstance(entries, Mapping):
        raise LeaderError(f"beat_schedule is {kind_of(entries)}: it must be a dict of entries")
    for name, entry in entries.items():
        try:
            yield name, dict(entry)
        except (TypeError, ValueError):
            raise LeaderError(
                f"beat_schedule[{name!r}] is {kind_of(entry)}: it must be a dict with 'task' and"
                " 'schedule'"
            ) from None
