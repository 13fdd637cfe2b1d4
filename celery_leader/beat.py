"""Beats that elect a leader: only the leading one dispatches.

``LeaderScheduler`` keeps the schedule's state in Redis and dispatches each tick in
one atomic step with the lease check (on a Redis broker): a beat that was paused or
cut off cannot send a tick again, and no tick's state moves without its message.
``LeaderMixin`` lets any other scheduler class take part; there the check stands
before each entry and is not atomic with the send.

Not guaranteed: anything about the task's run. And where the broker is not the Redis
that keeps the leases, a tick is claimed, published and confirmed: a crash in between has
the next leader publish it again, under the same task id.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import heapq
import logging
import os
import threading
from functools import cached_property
from typing import Any

from billiard.process import current_process
from celery import beat
from kombu.exceptions import OperationalError

from .app import ALWAYS_TERM, BEAT, Leadership, leadership_of, refusing_clearly
from .election import Change, Elected
from .errors import StoreUnavailable
from .plan import (
    CATCH_UP_OPTION,
    CatchUp,
    Plan,
    at,
    catch_up_of,
    latest_missed,
    occurrence_after,
    utc,
)
from .runner import Campaign
from .schedule_store import Mandate, Outcome, Push, ScheduleStore
from .tasks import adopt_tasks
from .transport import Hold, holding_transport, holds

logger = logging.getLogger(__name__)

_STEP = 1.0  # seconds; the longest a follower's tick takes, for beat's own liveness checks
_EARLY = 1.0  # seconds; a schedule that says "later" by less was asked a moment too early


class LeaderMixin:
    """Put before any scheduler class: it then dispatches on the leading beat only.

    ::

        class MyScheduler(LeaderMixin, PersistentScheduler): ...

    Followers neither dispatch nor write. Whether this beat leads is asked again
    before each entry.
    """

    app: Any
    max_interval: float
    _heap: Any

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        self._leadership: Leadership = leadership_of(app)
        with refusing_clearly():
            self._leadership.check()
        self._campaign: Campaign | None = None
        self._term: int | None = None
        self._farewell: threading.Event | None = None
        self._elected = threading.Event()
        # Set in the process that ``celery worker -B`` makes, and in no other.
        self._worker_pid: int | None = getattr(current_process(), "_parent_pid", None)
        super().__init__(app, *args, lazy=lazy, **kwargs)  # type: ignore[call-arg]
        if lazy:
            return  # the banner's instance, which must not take part
        adopt_tasks(app)
        node = self._leadership.free_node_name("beat")
        self._campaign = self._leadership.campaign(BEAT, node, self._on_change)

    @property
    def info(self) -> str:
        """The line of beat's banner that says who elects whom where."""
        return f"    . leader election -> {self._leadership.where(BEAT)}"

    def leading_term(self) -> int | None:
        """The term this beat leads with at this moment, or ``None``; no I/O."""
        if self._campaign is None:
            return ALWAYS_TERM if self._leadership.always_leads() else None
        return self._campaign.term()

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One turn of the scheduler while leading; otherwise wait a step to be elected."""
        self._end_without_worker()
        term = self.leading_term()
        if term is None:
            self._term = None
            # The service sleeps between ticks where nothing can wake it; here something can.
            timing = self._leadership.settings.timing
            self._elected.wait(min(_STEP, timing.renew_interval, self.max_interval))
            return 0
        if term != self._term:
            if not self.take_over(term):
                return _STEP
            self._term = term
        wait = self.lead(*args, **kwargs)
        return wait if self._worker_pid is None else min(wait, _STEP)

    def _end_without_worker(self) -> None:
        # A worker that is killed leaves its embedded beat behind, which would lead on.
        if self._worker_pid is not None and os.getppid() != self._worker_pid:
            logger.warning("%s: the worker this beat belongs to is gone, so it ends", BEAT)
            raise SystemExit(1)

    def take_over(self, term: int) -> bool:
        """Just elected: go on from what the last leader left; whether that could be read."""
        self._heap = None
        return True

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """One turn of the scheduler as the leader."""
        return float(super().tick(*args, **kwargs))  # type: ignore[misc]

    def reserve(self, entry: Any) -> Any:
        """Advance an entry's state, which only the leader may."""
        if self.leading_term() is None:
            return entry
        return super().reserve(entry)  # type: ignore[misc]

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        """Dispatch an entry, unless this beat no longer leads."""
        if self.leading_term() is None:
            logger.info("%s: not dispatching %s, not leading", BEAT, entry.name)
            return None
        return super().apply_async(entry, *args, **kwargs)  # type: ignore[misc]

    def sync(self) -> None:
        """Write the schedule's state, which only the leader may."""
        if self.leading_term() is not None:
            super().sync()  # type: ignore[misc]

    def close(self) -> None:
        """Write what is to be written, then resign.

        Beat calls it twice at SIGTERM, the first time inside the signal handler, where
        nothing may be waited for.
        """
        super().close()  # type: ignore[misc]
        if self._campaign is None:
            return
        if self._farewell is None:
            self._farewell = self._leadership.resign(self._campaign)
        elif not self._farewell.wait(self._leadership.farewell_timeout):
            logger.warning("%s: the lease could not be given up in time; it will expire", BEAT)

    def _on_change(self, change: Change) -> None:
        if isinstance(change, Elected):
            self._elected.set()
        else:
            self._elected.clear()


class LeaderScheduler(LeaderMixin, beat.Scheduler):  # type: ignore[misc]
    """The scheduler of ``celery beat -S leader``: shared state, one dispatch per tick.

    The schedule is the app's ``beat_schedule`` and its ``add_periodic_task`` entries;
    when each ran last is in Redis, beside the lease. There is no local file.
    """

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._plans: dict[str, Plan] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._pushed = 0
        self._hold: Hold | None = None
        self._store: ScheduleStore | None = None
        self._failures = 0
        self._not_enumerable: set[str] = set()
        super().__init__(app, *args, **kwargs)
        with refusing_clearly():
            for entry in self.schedule.values():
                catch_up_of(entry, CatchUp.ONE)
        if self._campaign is not None:
            leadership = self._leadership
            self._store = ScheduleStore(leadership.run_scripts, leadership.keys, BEAT)
            if leadership.leases_on_broker:
                self._hold = Hold()

    # -- where messages go -------------------------------------------------------

    @cached_property
    def connection(self) -> Any:
        """The connection messages are published on; on Redis one that can hold them back."""
        connection = self.app.connection_for_write()
        transport = connection.get_transport_cls()
        if self._hold is not None:
            connection.transport_cls = holding_transport(transport, self._hold)
        elif transport.driver_type == "amqp":
            connection.transport_options = {
                **(connection.transport_options or {}),
                "confirm_publish": True,
            }
        return connection

    @cached_property
    def producer(self) -> Any:
        """The producer messages are published with."""
        self.connection.connect()
        return self.Producer(self.connection, auto_declare=False)

    def _ready_producer(self) -> Any:
        producer = self.producer
        if self._hold is not None and not holds(producer.channel, self._hold):
            # kombu has gone to another URL and taken its own transport for it.
            self._drop_connection()
            producer = self.producer
            if not holds(producer.channel, self._hold):
                raise StoreUnavailable("the broker connection cannot be fenced")
        return producer

    def _drop_connection(self) -> None:
        connection = self.__dict__.pop("connection", None)
        self.__dict__.pop("producer", None)
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    # -- leading -----------------------------------------------------------------

    def take_over(self, term: int) -> bool:
        """Read the shared state, anchor what is new, forget what is gone."""
        try:
            stored = self._store.load() if self._store is not None else {}
            fresh: dict[str, tuple[str, str]] = {}
            self._plans = {}
            for name, entry in self.schedule.items():
                before = stored.get(name, "")
                plan = Plan.restored(entry, before) or self._anchored(entry, before)
                plan = self._caught_up(plan)
                if plan.state != before:
                    fresh[name] = (before, plan.state)
                self._plans[name] = plan
                self.schedule[name] = plan.entry
            if self._store is not None:
                mandate = self._mandate(term)
                outcome = self._store.anchor(mandate, fresh) if fresh else Outcome.SENT
                gone = [name for name in stored if name not in self._plans]
                if gone and outcome is Outcome.SENT:
                    outcome = self._store.forget(mandate, gone)
                if outcome is not Outcome.SENT:
                    self._contradicted(outcome, term)
                    return False
        except StoreUnavailable as exc:
            self._note_failure("the schedule", exc)
            return False
        self._queue = []
        for name, plan in self._plans.items():
            self._push(name, plan)
        return True

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """Dispatch what is due, one entry per turn, the longest due first."""
        if len(self._plans) != len(self.schedule):
            self._term = None  # entries came or went: plan anew
            return 0
        if not self._queue:
            return float(self.max_interval)
        due, _, name = self._queue[0]
        plan = self._plans[name]
        wait = due - at(plan.entry.default_now())
        if wait > 0:
            return float(min(wait, self.max_interval))
        due_now, next_in = self._is_due_or_later(plan.entry)
        if due_now:
            done = self._dispatch(name, plan, next_in)
        elif next_in > _EARLY:
            done = self._postpone(name, plan, next_in)
        else:
            self._reschedule(name, next_in)
            done = True
        return 0 if done else float(min(0.1 * 2 ** min(self._failures, 5), self.max_interval))

    def _dispatch(self, name: str, plan: Plan, next_in: float) -> bool:
        """Dispatch one tick; whether it is done with, one way or another."""
        term = self.leading_term()
        if term is None:
            return True
        advanced = self._advanced(plan, next_in)
        return self._settle(name, advanced, self._send(name, plan, advanced, term), term)

    def _advanced(self, plan: Plan, next_in: float) -> Plan:
        """The plan after this tick, which may itself have been missed."""
        now = plan.entry.default_now()
        if self._catch_up(plan.entry) is CatchUp.ALL:
            following = occurrence_after(plan.entry.schedule, plan.due)
            if following is not None:
                return plan.dispatched(plan.due, following)
        return plan.dispatched(now, now + datetime.timedelta(seconds=next_in))

    def _caught_up(self, plan: Plan) -> Plan:
        """The plan to go on with, just elected: what of the missed ticks is to be sent."""
        now = plan.entry.default_now()
        if plan.claimed or at(plan.due) >= at(now):
            return plan
        mode = self._catch_up(plan.entry)
        if mode is CatchUp.NONE:
            _, next_in = self._is_due_or_later(plan.entry)
            return plan.restarted(now, now + datetime.timedelta(seconds=next_in))
        if mode is CatchUp.ALL:
            most = self._leadership.settings.beat_catch_up_max
            due = latest_missed(plan.entry.schedule, plan.due, now, most)
            if due != plan.due:
                logger.warning(
                    "beat: %s missed more than leader_beat_catch_up_max (%d) ticks;"
                    " those before %s are not sent",
                    plan.entry.name,
                    most,
                    utc(due),
                )
                return plan.postponed(due)
        return plan

    def _catch_up(self, entry: Any) -> CatchUp:
        mode = catch_up_of(entry, self._leadership.settings.beat_catch_up)
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

    def _postpone(self, name: str, plan: Plan, next_in: float) -> bool:
        """The schedule says later than it was planned; whether that is stored."""
        term = self.leading_term()
        if term is None:
            return True
        due = plan.entry.default_now() + datetime.timedelta(seconds=next_in)
        later = plan.postponed(due)
        try:
            outcome = self._claim(name, plan, later, term, [])
        except StoreUnavailable as exc:
            self._note_failure(name, exc)
            return False
        return self._settle(name, later, outcome, term)

    def _settle(self, name: str, plan: Plan, outcome: Outcome | None, term: int) -> bool:
        """Go on with ``plan`` if Redis agreed to it; whether there is an answer at all."""
        if outcome is None:
            return False
        if outcome in (Outcome.SENT, Outcome.REPEATED):
            self._note_success()
            heapq.heappop(self._queue)
            self._plans[name] = plan
            self.schedule[name] = plan.entry
            self._push(name, plan)
        else:
            self._contradicted(outcome, term)
        return True

    def _send(self, name: str, plan: Plan, advanced: Plan, term: int) -> Outcome | None:
        """Publish and claim, in one step where that can be; ``None``: try again later."""
        try:
            if self._hold is None:
                return self._publish_claimed(name, plan, advanced, term)
            try:
                with self._hold.collecting() as pushes:
                    self._publish(plan, term)
            except _Unsendable as exc:
                # Its state moves on all the same, or it would be tried for ever.
                logger.error("beat: %s cannot be sent, this tick of it is given up: %s", name, exc)
                pushes = []
            return self._claim(name, plan, advanced, term, pushes)
        except StoreUnavailable as exc:
            self._note_failure(name, exc)
            return None

    def _publish_claimed(self, name: str, plan: Plan, advanced: Plan, term: int) -> Outcome:
        """Claim, publish, confirm: where the message cannot travel with the claim.

        A crash in between has the next leader publish again, under the same task id.
        """
        claim = plan.claim()
        outcome = self._claim(name, plan, claim, term, [])
        if outcome not in (Outcome.SENT, Outcome.REPEATED):
            return outcome
        self._plans[name] = claim
        try:
            self._publish(claim, term, claim.task_id(self._leadership.settings.namespace))
        except _Unsendable as exc:
            logger.error("beat: %s cannot be sent, this tick of it is given up: %s", name, exc)
        return self._claim(name, claim, advanced, term, [])

    def _claim(
        self, name: str, plan: Plan, advanced: Plan, term: int, pushes: list[Push]
    ) -> Outcome:
        if self._store is None:
            return Outcome.SENT
        return self._store.dispatch(self._mandate(term), name, plan.state, advanced.state, pushes)

    def _publish(self, plan: Plan, term: int, task_id: str | None = None) -> None:
        """Publish the message of one tick, held back or not.

        Raises:
            StoreUnavailable: the broker cannot be reached; the tick stays due.
            _Unsendable: it can never be sent.
        """
        lost = (OperationalError, *self.connection.connection_errors)
        try:
            producer = self._ready_producer()
        except lost as exc:
            self._drop_connection()
            raise StoreUnavailable(f"the broker cannot be reached: {exc}") from exc
        entry = _labelled(plan, term, task_id)
        logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            super().apply_async(entry, producer=producer, advance=False)
        except beat.SchedulingError as exc:
            cause = exc.__cause__ or exc.__context__
            if isinstance(cause, lost):
                self._drop_connection()
                raise StoreUnavailable(f"the broker cannot be reached: {cause}") from exc
            raise _Unsendable(str(exc)) from exc

    # -- small parts ----------------------------------------------------------------

    def _anchored(self, entry: Any, stored: str) -> Plan:
        """A plan for an entry nobody has dispatched, or whose schedule was changed."""
        due_now, next_in = self._is_due_or_later(entry)
        wait = 0.0 if due_now else next_in
        due = entry.default_now() + datetime.timedelta(seconds=wait)
        return Plan.anchored(entry, stored, due)

    def _is_due_or_later(self, entry: Any) -> tuple[bool, float]:
        """Whether ``entry`` is due and in how many seconds next; one that cannot tell, later."""
        try:
            due_now, next_in = self.is_due(entry)
        except Exception:
            logger.exception(
                "beat: cannot tell when %r is due, trying again in %s s",
                entry.name,
                self.max_interval,
            )
            return False, self.max_interval
        return due_now, next_in if isinstance(next_in, int | float) else self.max_interval

    def _push(self, name: str, plan: Plan) -> None:
        self._pushed += 1
        heapq.heappush(self._queue, (at(plan.due), self._pushed, name))

    def _reschedule(self, name: str, next_in: float) -> None:
        self._pushed += 1
        again = at(self._plans[name].entry.default_now()) + next_in
        heapq.heapreplace(self._queue, (again, self._pushed, name))

    def _mandate(self, term: int) -> Mandate:
        assert self._campaign is not None
        return Mandate(self._campaign.election.nonce, term)

    def _contradicted(self, outcome: Outcome, term: int) -> None:
        assert self._campaign is not None
        logger.info("%s: dispatch refused, term %d: %s", BEAT, term, outcome.value)
        self._term = None  # whatever happens next, read the shared state again first
        if outcome is not Outcome.CLAIMED:
            gone = outcome is Outcome.MISSING
            self._leadership.contradicted(self._campaign, term, gone=gone)

    def _note_failure(self, what: str, exc: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning("beat: %s stays due and is tried again: %s", what, exc)

    def _note_success(self) -> None:
        if self._failures:
            logger.info("beat: dispatching again after %d failed attempt(s)", self._failures)
            self._failures = 0


class _Unsendable(Exception):
    """A tick whose message can never be made."""


def _labelled(plan: Plan, term: int, task_id: str | None) -> Any:
    """The entry with headers that name the tick, and no retries of kombu's own."""
    options = {k: v for k, v in plan.entry.options.items() if k != CATCH_UP_OPTION}
    labels = {"leader_term": term, "leader_tick": utc(plan.due)}
    options["headers"] = {**(options.get("headers") or {}), **labels}
    options["retry"] = False
    if task_id is not None:
        options["task_id"] = task_id
    entry = copy.copy(plan.entry)
    entry.options = options
    return entry
