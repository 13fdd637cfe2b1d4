"""Beats that elect a leader: only the leading one dispatches.

``LeaderScheduler`` keeps the schedule's state in Redis. ``LeaderMixin`` lets any other
scheduler class take part, whatever it keeps its schedule in. With both, each message is
sent in one atomic step with the lease check and the claim of its tick (on a Redis
broker): a beat that was paused or cut off cannot send a tick again, and no tick's
state moves without its message.

Not guaranteed: anything about the task's run. And where the broker is not the Redis
that keeps the leases, a tick is claimed, published and confirmed: a crash in between has
the next leader publish it again, under the same task id.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import logging
import math
import os
import signal
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from celery import beat, signals
from celery.schedules import crontab, schedule
from celery.utils import uuid

from celery_leader.core.changes import Change, Deposed, Elected, StepDownRequested
from celery_leader.core.watchdog import BrokerHeartbeat, Heartbeat, Requirement
from celery_leader.errors import LeaderError, StoreUnavailable, kind_of
from celery_leader.metrics_server import serve_metrics
from celery_leader.runtime import remote_control as control
from celery_leader.runtime.clock import now
from celery_leader.runtime.command_line import refusing_clearly
from celery_leader.runtime.context import ALWAYS_TERM
from celery_leader.runtime.identity import app_identity, worker_pid
from celery_leader.runtime.leadership import Leadership, leadership_of
from celery_leader.runtime.runner import Campaign
from celery_leader.runtime.schedulers import unread
from celery_leader.runtime.settings import BEAT, DEFAULT_CLOCK_TOLERANCE, CatchUp
from celery_leader.store.schedule_store import Stored
from celery_leader.tasks.leader_only import adopt_tasks
from celery_leader.tasks.routing import installed

from .dispatch import Dispatch, Dispatcher
from .entry_state import Tidying, is_later
from .plan import (
    CATCH_UP_OPTION,
    Plan,
    Tick,
    anchor,
    as_told_by,
    at,
    catch_up_of,
    counted_from,
    due_of,
    last_run,
    later,
    latest_missed,
    occurrence_after,
    task_id_of,
    utc,
)
from .projects import Ownership, Project
from .wall_clock import WallClock

logger = logging.getLogger(__name__)

_STEP = 1.0  # seconds; the longest a follower's tick takes, for beat's own liveness checks
_LONGEST_RETRY = 0.8  # seconds; the longest pause before what could not be sent is tried again
_LONGEST_ASIDE = 30.0  # seconds; the same for what cannot be sent while others can
_TRIES = 3  # attempts at one tick before it is asked whether others could be sent
_FAR = 10 * 365 * 86400.0  # seconds; later than this is not told from never
_EARLY = 1.0  # seconds; a schedule that says "later" by less was asked a moment too early
_JUST_MADE = 5.0  # seconds; as long as a scheduler may take to make its entries
_MOST_NAMED = 5  # entries in one line of the log
_TIDY_INTERVAL = 3600.0  # seconds; between two looks at the states that nobody knows


class LeaderMixin:
    """Put before any scheduler class: it then dispatches on the leading beat only.

    ::

        class MyScheduler(LeaderMixin, PersistentScheduler): ...

    Followers neither dispatch nor write. When each entry ran last is also kept in
    Redis, so that the next leader goes on from there whatever its own store says.
    """

    #: What the scheduler's own store raises while it cannot be used; it is then asked again.
    store_errors: tuple[type[Exception], ...] = ()

    #: Once anything has imported celery-redbeat, it asks every beat's scheduler for its lock.
    lock_key: Any = None

    app: Any
    schedule: Any
    max_interval: float
    _heap: Any

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        self._leadership: Leadership = leadership_of(app)
        with refusing_clearly():
            self._leadership.check()
        self._led_term: int | None = None
        self._failed_sends = 0
        self._sending = False
        self._pause = threading.Event()
        self._shared: dict[str, str] = {}
        self._tidies_at = math.inf
        self._said_later: set[str] = set()
        self._said_foreign: set[str] = set()
        #: This project's id in the shared schedule, and the entries that are another's.
        self._project = ""
        self._foreign: dict[str, str] = {}
        self._farewell: threading.Event | None = None
        self._elected = threading.Event()
        self._order: StepDownRequested | None = None
        self._turn = threading.Lock()
        # Set in the process that ``celery worker -B`` makes, and in no other.
        self._worker_pid = worker_pid()
        self._campaign: Campaign | None = None
        self._heartbeat: Heartbeat | None = None
        self._clock: WallClock | None = None
        # Where the future begins by Redis's clock, counted from the clock that is never set.
        self._future = math.inf
        self._service: Any = None
        self._dispatcher: Dispatcher | None = None
        super().__init__(app, *args, lazy=lazy, **kwargs)  # type: ignore[call-arg]
        #: The entries that this process made itself, and the moment that each counted from then.
        self._made: dict[str, datetime.datetime] = {}
        if lazy and not self._leadership.always_leads():
            return  # the banner's instance, which must not take part
        adopt_tasks(app)
        if self._leadership.task_elections and not installed(app):
            logger.warning(
                "%s: this app has leader-only tasks but no workers that elect a leader, and they"
                " will fail: call celery_leader.install(app) where the app is made",
                BEAT,
            )
        with refusing_clearly():
            serve_metrics(app)
        signals.beat_init.connect(self._on_beat_init)
        node = self._leadership.node_names.of_beat()
        self._heartbeat = self._leadership.new_heartbeat("the beat")
        self._show_life()
        broker, self._clock = self._new_broker_heartbeat(), self._new_clock()
        requirements: list[Requirement] = [
            each for each in (self._heartbeat, broker, self._clock) if each is not None
        ]
        self._campaign = self._leadership.candidacies.enter(
            BEAT,
            node,
            self._on_change,
            requirements=requirements,
            role="beat",
            scheduler=self._called,
        )
        self._dispatcher = Dispatcher(app, self._leadership, self._campaign, broker)
        if self._dispatcher.shares_state:
            self._made = {
                name: entry.last_run_at
                for name, entry in self.entries_in_memory().items()
                if self.is_made_here(entry)
            }
        if self._worker_pid is not None:
            # What a worker stops its beat with; by default that is the end, lease or not.
            signal.signal(signal.SIGTERM, _exit)

    @property
    def _called(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def info(self) -> str:
        """The line of beat's banner that says who elects whom where."""
        return f"    . leader election -> {self._leadership.redis.banner(BEAT)}"

    def leading_term(self) -> int | None:
        """The term this beat leads with at this moment, or ``None``; no I/O."""
        if self._campaign is None:
            return ALWAYS_TERM if self._leadership.always_leads() else None
        if self._clock is not None and self._clock.is_off(now()):
            # This cannot wait for the election: what is due by a wrong clock must not go out.
            self._leadership.candidacies.look_around()
            return None
        return self._campaign.term()

    def _new_broker_heartbeat(self) -> BrokerHeartbeat | None:
        """The broker's heartbeat; ``None`` where an outage of the broker ends the lease anyway."""
        if self._leadership.redis.is_broker:
            return None
        return BrokerHeartbeat(self._leadership.settings.timing.lease_duration)

    def _new_clock(self) -> WallClock | None:
        """The clock that this beat goes by; ``None`` if it is not to be compared with Redis's."""
        tolerance = self._leadership.settings.beat_clock_tolerance
        return WallClock(lambda: at(self.app.now()), tolerance) if tolerance else None

    def _on_beat_init(self, sender: Any, **_: Any) -> None:
        if sender.scheduler is self:
            self._service = sender
            self._leadership.tell_unknown_settings()  # no log is set up earlier
            if type(self) in (LeaderScheduler, LeaderPersistentScheduler):
                missed = unread(self.app)
                if missed is not None:
                    logger.warning("%s: %s", BEAT, missed)

    def _answer_remote_control(self) -> None:
        """Have this beat answer to the commands of elections, if it answers to any."""
        # Celery's mailbox for beats knows ``ping`` only, and has no place to add to: it exists
        # from Celery 5.7 on, where it was asked for, once the service has begun.
        service, self._service = self._service, None
        mailbox = getattr(service, "_pidbox", None)
        handlers = getattr(getattr(mailbox, "node", None), "handlers", None)
        if isinstance(handlers, dict):
            handlers.update(control.HANDLERS)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One turn of the scheduler while leading; otherwise wait a step to be elected."""
        self._show_life()
        if self._service is not None:
            self._answer_remote_control()
        try:
            with self._turn:
                wait = self._one_turn(*args, **kwargs)
        finally:
            self._give_way()
        self._show_life(rest=wait)
        return wait

    def _show_life(self, rest: float = 0.0) -> None:
        """Tell the watchdog that this beat moves, and may now rest."""
        if self._heartbeat is not None:
            self._heartbeat.beat(now(), rest)

    def _one_turn(self, *args: Any, **kwargs: Any) -> float:
        self._end_without_worker()
        term = self.leading_term()
        if term is None:
            self._led_term = None
            if self._dispatcher is not None:
                self._dispatcher.look_for_broker()
            # The service sleeps between ticks where nothing can wake it; here something can.
            timing = self._leadership.settings.timing
            self._elected.wait(min(_STEP, timing.renew_interval, self.max_interval))
            return 0
        try:
            if term != self._led_term:
                if not self.take_over(term):
                    return self._retry_delay()
                self._led_term = term
            wait = self.lead(*args, **kwargs)
            if now() >= self._tidies_at:
                self._tidy_again(term)
        except self.store_errors as exc:
            self._led_term = None  # what was read so far may be half of it
            self._note_failure("the schedule", exc)
            return self._retry_delay()
        return wait if self._worker_pid is None else min(wait, _STEP)

    def _give_way(self) -> None:
        """Do as this leader is told, unless a turn is under way, which does it at its end."""
        while self._order is not None and self._turn.acquire(blocking=False):
            try:
                order, self._order = self._order, None
                if order is not None and self._campaign is not None:
                    self._leadership.candidacies.step_down(
                        self._campaign, order.successor, order.reason
                    )
            finally:
                self._turn.release()

    def _end_without_worker(self) -> None:
        # A worker that is killed leaves its embedded beat behind, which would lead on.
        if self._worker_pid is not None and os.getppid() != self._worker_pid:
            logger.warning("%s: the worker this beat belongs to is gone, so it ends", BEAT)
            raise SystemExit(1)

    def take_over(self, term: int) -> bool:
        """Go on from what the last leader left, just elected; whether that could be read."""
        dispatcher = self._dispatcher
        if dispatcher is None:
            return False
        try:
            shared = self._tidied(term, dispatcher.load())
            if shared is None:
                return False
            self._shared = shared
            entries = self.entries_in_memory()
            self.bring_up_to_date(entries)
            if not self._anchored(term, entries):
                return False
        except StoreUnavailable as exc:
            self._note_failure("the schedule", exc)
            return False
        self._heap = None
        return True

    # -- the states that beats share ----------------------------------------------------

    def known_entries(self) -> Collection[str]:
        """The names of all entries there are, whether due or not.

        The state of others is kept for ``leader_schedule_retention``, since beats of another
        version of the app may know them.
        """
        return set(self.schedule)

    def _tidied(self, term: int, stored: Stored) -> dict[str, str] | None:
        """The states to go on with; ``None`` if Redis did not agree to what is to be written.

        Raises:
            StoreUnavailable: nobody knows.
        """
        assert self._dispatcher is not None
        retention = self._leadership.settings.schedule_retention
        self._tidies_at = now() + min(retention, _TIDY_INTERVAL)
        known = self.known_entries()
        ownership = Ownership.of(
            Project.of(app_identity(self.app), known),
            stored.projects,
            stored.states,
            uuid()[:8],
        )
        if not self._dispatcher.register(term, ownership):
            return None
        self._project, self._foreign = ownership.id, ownership.foreign(stored.states)
        self._tell_of_foreign(known, ownership)
        ours = {name: each for name, each in stored.states.items() if name not in self._foreign}
        tolerance = self._leadership.settings.beat_clock_tolerance or DEFAULT_CLOCK_TOLERANCE
        tidying = Tidying.of(ours, known, stored.now, retention, tolerance)
        if self._dispatcher.shares_state:
            self._future = stored.now + tolerance - now()
        agreed = self._dispatcher.write(term, tidying.marks)
        if not (agreed and self._dispatcher.forget(term, tidying.gone)):
            return None
        states = ours | {name: new for name, (_, new) in tidying.marks.items()}
        for name in tidying.gone:
            del states[name]
        self._tell_of_later(name for name in known if is_later(states.get(name, "")))
        return states

    def is_future(self, moment: datetime.datetime) -> bool:
        """Whether nothing can have run at ``moment`` by a right clock."""
        return at(moment) > now() + self._future

    def _tidy_again(self, term: int) -> None:
        """While leading on, remove states that nobody has known for long, and adopt free ones."""
        assert self._dispatcher is not None
        foreign = self._foreign
        try:
            agreed = self._tidied(term, self._dispatcher.load()) is not None
            if not agreed or self._foreign != foreign:
                self._led_term = None  # read the shared state again before anything else
        except StoreUnavailable as exc:
            logger.debug("beat: the shared schedule could not be tidied: %s", exc)

    def _tell_of_later(self, names: Iterable[str]) -> None:
        untold = sorted(set(names) - self._said_later)
        self._said_later.update(untold)
        if untold:
            logger.error(
                "beat: a later version of celery_leader wrote the state of %s%s; this beat leaves"
                " it alone and does not send %s: upgrade this beat",
                ", ".join(untold[:_MOST_NAMED]),
                f" and of {len(untold) - _MOST_NAMED} more" if len(untold) > _MOST_NAMED else "",
                "it" if len(untold) == 1 else "them",
            )

    def _tell_of_foreign(self, known: Collection[str], ownership: Ownership) -> None:
        """Log, once for each entry, that an entry of another project has its name."""
        for name in sorted(set(known) & self._foreign.keys() - self._said_foreign):
            self._said_foreign.add(name)
            project = self._foreign[name]
            assert self._dispatcher is not None
            logger.error(
                "beat: %s is not sent, because another project (%s) has an entry of that name in"
                " the same election: give one of them another leader_namespace, and another"
                " leader_queue or task_default_queue. If it is the same project under new names,"
                " have its states adopted: redis-cli HDEL %s %s",
                name,
                ownership.others[project],
                self._dispatcher.projects_key,
                project,
            )

    def _anchored(self, term: int, entries: Mapping[str, Any]) -> bool:
        """Share the entries that this process made and nobody knows, counted from now.

        Returns whether Redis agreed.

        Raises:
            StoreUnavailable: nobody knows.
        """
        fresh: dict[str, tuple[str, str]] = {}
        moments: dict[str, datetime.datetime] = {}
        for name, entry in entries.items():
            if name in self._shared or name in self._foreign:
                continue
            if self._made.get(name) != entry.last_run_at:
                continue
            moments[name] = entry.default_now()
            fresh[name] = "", anchor(entry, moments[name], self._project)
        assert self._dispatcher is not None
        if not self._dispatcher.write(term, fresh):
            return False
        # Only now: what Redis did not agree to must still be new to the next try.
        for name, moment in moments.items():
            entries[name].last_run_at = moment
        self._shared.update({name: new for name, (_, new) in fresh.items()})
        return True

    def is_made_here(self, entry: Any) -> bool:
        """Whether ``entry`` counts from nothing but the start of this process.

        Asked of each entry in memory at the start.
        """
        age = at(entry.default_now()) - at(entry.last_run_at)
        return not entry.total_run_count and 0 <= age < _JUST_MADE

    def bring_up_to_date(self, entries: dict[str, Any]) -> None:
        """Give ``entries`` the last run that beats share, where there is one."""
        for name, entry in entries.items():
            last = last_run(self._shared.get(name, ""))
            if last is not None:
                self.ran_last(entry, *last)

    def ran_last(self, entry: Any, moment: datetime.datetime, count: int) -> None:
        """Have ``entry`` go on from its ``count``-th run, at ``moment``."""
        entry.last_run_at, entry.total_run_count = as_told_by(entry, moment), count

    def entries_in_memory(self) -> dict[str, Any]:
        """The entries whose state this process keeps; none where a store is read at each turn."""
        return dict(self.schedule)

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """One turn of the scheduler as the leader."""
        return float(super().tick(*args, **kwargs))  # type: ignore[misc]

    def reserve(self, entry: Any) -> Any:
        """Advance an entry's state, which only the leader may."""
        if self.leading_term() is None:
            return entry
        return super().reserve(entry)  # type: ignore[misc]

    @property
    def producer(self) -> Any:
        """What messages are published with; ``None`` while the broker cannot be reached.

        A scheduler's ``tick()`` asks for it when it has already counted the entry as sent, so
        this raises nothing; ``apply_async`` finds the broker by itself, and tries on.
        """
        if self._dispatcher is None:
            raise StoreUnavailable("a scheduler that was made for its banner sends nothing")
        try:
            return self._dispatcher.producer()
        except StoreUnavailable:
            return None

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Dispatch an entry, while this beat leads; once, whatever becomes of the attempt.

        A tick that cannot be sent now is tried again until it is, or until this beat
        no longer leads.
        """
        name = entry.name
        if name in self._foreign:
            return None  # the log has said so
        before = self._shared.get(name, "")
        tick = replace(self.tick_of(entry, before), project=self._project)
        if is_later(before):
            self._tell_of_later([name])
            return None
        dispatch = Dispatch(
            name, before, tick.claimed(before), tick.sent(entry, self.ran_at(entry))
        )
        message = Labelled(entry, tick.label, self._own_id(name, tick.label))
        term: int | None = None
        result = None
        tries = 0

        def publish(producer: Any) -> None:
            nonlocal result
            with self._unwritten(), message.sent_in(term or 0):
                result = super(LeaderMixin, self).apply_async(  # type: ignore[misc]
                    entry, producer=producer, advance=False
                )

        if tick.is_in(before):
            logger.info("%s: %s was sent already as it was due at %s", BEAT, name, tick.label)
        while not tick.is_in(before):
            self._show_life()
            term = self.leading_term()
            if term is None or self._dispatcher is None:
                logger.info("%s: not dispatching %s, not leading", BEAT, name)
                return None
            try:
                agreed = self._dispatcher.send(term, dispatch, publish)
            except StoreUnavailable as exc:
                tries += 1
                if tries >= _TRIES and self._is_at_fault(dispatch, term):
                    logger.error(
                        "beat: %s cannot be sent as others are, this tick is given up: %s",
                        name,
                        exc,
                    )
                    break
                self._note_failure(name, exc)
                self._pause.wait(self._retry_delay())
                continue
            self._note_success()
            if not agreed:
                self._led_term = None  # read the shared state again before anything else
                return None
            self._shared[name] = before = dispatch.new
        if advance:
            self.reserve(entry)
        return result

    def _is_at_fault(self, dispatch: Dispatch, term: int) -> bool:
        """Whether ``dispatch`` has failed where others would not."""
        assert self._dispatcher is not None
        try:
            return self._dispatcher.works(term) and not self._dispatcher.was_sent(dispatch)
        except StoreUnavailable:
            return False

    def tick_of(self, entry: Any, before: str) -> Tick:
        """The tick that ``entry`` is to dispatch, whose shared state is ``before``."""
        return Tick.of(entry, before)

    def ran_at(self, entry: Any) -> datetime.datetime | None:
        """When ``entry`` runs by the scheduler's own store, if that says; else it is now."""
        return None

    @contextlib.contextmanager
    def _unwritten(self) -> Iterator[None]:
        # Celery writes the scheduler's own store as part of a send. It must not say of a tick
        # that it ran before Redis has agreed to it.
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    def should_sync(self) -> bool:
        """Whether the scheduler's own store is to be written; not in the middle of a send."""
        return not self._sending and bool(super().should_sync())  # type: ignore[misc]

    def _own_id(self, name: str, tick: str) -> str | None:
        """The task id of a message that does not travel with its claim; others get a new one."""
        dispatcher = self._dispatcher
        if dispatcher is None or dispatcher.fences_messages or not dispatcher.shares_state:
            return None
        return task_id_of(self._leadership.settings.namespace, name, tick)

    def _retry_delay(self) -> float:
        delay = min(0.05 * 2 ** min(self._failed_sends, 10), _LONGEST_RETRY)
        return float(min(delay, self.max_interval))

    def _note_failure(self, what: str, exc: Exception) -> None:
        self._failed_sends += 1
        if self._failed_sends == 1:
            logger.warning("beat: %s stays due and is tried again: %s", what, exc)

    def _note_success(self) -> None:
        if self._failed_sends:
            logger.info("beat: dispatching again after %d failed attempt(s)", self._failed_sends)
            self._failed_sends = 0

    def sync(self) -> None:
        """Write the schedule's state, which only the leader may."""
        if self.leading_term() is not None:
            super().sync()  # type: ignore[misc]

    def close(self) -> None:
        """Write what is to be written, then resign.

        Beat calls it twice at SIGTERM, the first time inside the signal handler, where
        nothing may be waited for. An embedded one calls it once, outside of it.
        """
        try:
            super().close()  # type: ignore[misc]
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.close()
        if self._campaign is None:
            return
        if self._farewell is None:
            self._farewell = self._leadership.candidacies.resign(self._campaign)
            if self._worker_pid is None:
                return
        if not self._farewell.wait(self._leadership.candidacies.farewell_timeout):
            logger.warning("%s: the lease could not be given up in time; it will expire", BEAT)

    def _on_change(self, change: Change) -> None:
        match change:
            case Elected():
                self._order = None
                self._elected.set()
            case Deposed():
                self._elected.clear()
            case StepDownRequested():
                # Between two turns the service sleeps, for minutes where nothing is due.
                self._order = change
                self._give_way()


class LeaderPersistentScheduler(LeaderMixin, beat.PersistentScheduler):  # type: ignore[misc]
    """Celery's own scheduler with its local file, dispatching on the leading beat only."""

    def is_made_here(self, entry: Any) -> bool:
        """Whether it never ran: then the file says only when a beat was started with it."""
        return not entry.total_run_count


class LeaderScheduler(LeaderMixin, beat.Scheduler):  # type: ignore[misc]
    """The scheduler of ``celery beat -S leader``: shared state, one dispatch per tick.

    The schedule is the app's ``beat_schedule`` and its ``add_periodic_task`` entries;
    when each ran last is in Redis, beside the lease. There is no local file.
    """

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._plans: dict[str, Plan] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._pushed = 0
        self._known: dict[str, Any] = {}
        self._left_alone = 0
        self._remembers = False
        # What the app itself says when an entry ran last, before any beat knows.
        self._given: set[str] = set()
        self._clock_read = 0.0
        self._not_enumerable: set[str] = set()
        self._sendings: dict[str, _Sending] = {}
        self._raised: Exception | None = None
        # What cannot be sent while others can, and how often that was tried.
        self._aside: dict[str, int] = {}
        with refusing_clearly():
            # The banner's instance, which is the first, has no schedule of its own.
            for name, fields in _checked(app.conf.beat_schedule):
                catch_up_of(name, fields.get("options"), CatchUp.ONE)
                if fields.get("last_run_at"):
                    self._given.add(name)
        super().__init__(app, *args, **kwargs)

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Publish the message of ``entry``; ``lead`` is what claims the tick with it.

        ``None`` if that failed: ``apply_entry``, which calls this, would log it and tell nobody.
        """
        stock: Any = super(LeaderMixin, self)
        try:
            return stock.apply_async(entry, producer=producer, advance=advance, **kwargs)
        except Exception as exc:
            self._raised = exc
            return None

    # -- leading -----------------------------------------------------------------

    def add(self, **kwargs: Any) -> Any:
        """Add an entry while beat runs; it counts from ``last_run_at`` if that is given."""
        entry = super().add(**kwargs)
        if kwargs.get("last_run_at"):
            self._given.add(entry.name)
        return entry

    def take_over(self, term: int) -> bool:
        """Read the shared state, and anchor what is new."""
        dispatcher = self._dispatcher
        if dispatcher is None:
            return False
        try:
            stored = self._tidied(term, dispatcher.load())
            if stored is None:
                return False
            self._plans = {
                name: self._planned(entry, stored.get(name, "")).of_project(self._project)
                for name, entry in self.schedule.items()
                if not (is_later(stored.get(name, "")) or name in self._foreign)
            }
            fresh = {
                name: (stored.get(name, ""), plan.state)
                for name, plan in self._plans.items()
                if plan.state != stored.get(name)
            }
            if not dispatcher.write(term, fresh):
                return False
        except StoreUnavailable as exc:
            self._note_failure("the schedule", exc)
            return False
        self._left_alone = len(self.schedule) - len(self._plans)
        self._remembers = True
        self._queue = []
        self._aside = {}
        self._sendings = {}
        for name, plan in self._plans.items():
            self.schedule[name] = plan.entry
            self._push(name, plan)
        self._known = dict(self.schedule)
        self._clock_read = at(self.app.now())
        return True

    def _remembered(self, name: str) -> str:
        """The state that this beat wrote, in case Redis lost it; empty if another led since."""
        return self._plans[name].state if self._remembers and name in self._plans else ""

    def _on_change(self, change: Change) -> None:
        if isinstance(change, Deposed):
            self._remembers = False
        super()._on_change(change)

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """Dispatch what is due, one entry per turn, the longest due first."""
        if len(self._plans) + self._left_alone != len(self.schedule):
            self._led_term = None  # plan anew
            return 0
        if not self._queue:
            return float(self.max_interval)
        due, _, name = self._queue[0]
        plan = self._plans[name]
        wait = due - at(plan.entry.default_now())
        # All are compared before a rest only. At each entry it would take long if many are due.
        changed = wait > 0 and (self._known != self.schedule or self._clock_went_back())
        if changed or self.schedule.get(name) is not plan.entry:
            self._led_term = None  # entries came, went or changed, or the clock did: plan anew
            return 0
        if wait > 0:
            return float(min(wait, self.max_interval))
        due_now, next_in = self._is_due_or_later(plan.entry)
        due_now = due_now or plan.claimed  # it may have been published: that is to be confirmed
        if not due_now and next_in <= _EARLY:
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
                agreed = self._write(name, plan, following, term)
        except StoreUnavailable as exc:
            return self._set_aside(name, term, exc)
        self._sendings.pop(name, None)
        if agreed:
            heapq.heappop(self._queue)
            self._plans[name] = following
            self._known[name] = self.schedule[name] = following.entry
            self._push(name, following)
        else:
            self._led_term = None  # read the shared state again before anything else
        self._note_sent(name)
        return 0

    def _set_aside(self, name: str, term: int, exc: StoreUnavailable) -> float:
        """This tick stays due; if others can be sent, it waits for its next try beside them."""
        if name not in self._aside and not self._dispatches(term):
            self._note_failure(name, exc)
            return self._retry_delay()
        tries = self._aside[name] = self._aside.get(name, 0) + 1
        if tries == 1:
            return 0  # a connection may have been lost, and is there again
        if tries == 2:
            logger.error("beat: %s stays due, but cannot be sent as others are: %s", name, exc)
        self._push_later(name, min(_LONGEST_RETRY * 2 ** (tries - 2), _LONGEST_ASIDE))
        return 0

    def _dispatches(self, term: int) -> bool:
        return self._dispatcher is not None and self._dispatcher.works(term)

    def _note_sent(self, name: str) -> None:
        if self._aside.pop(name, 0) > 1:
            logger.info("beat: %s can be sent again", name)
        self._note_success()

    def _dispatch(self, name: str, plan: Plan, next_in: float, term: int) -> tuple[Plan, bool]:
        """Send the message of this tick and store what follows; that, and whether it was agreed.

        Raises:
            StoreUnavailable: nobody knows; the tick stays due.
        """
        assert self._dispatcher is not None
        sending = self._sendings.get(name)
        if sending is None:
            label = utc(plan.due)
            message = Labelled(plan.entry, label, self._own_id(name, label))
            # The state in between is for a message that does not travel with its claim.
            claimed = plan.state if self._dispatcher.fences_messages else plan.claim().state
            dispatch = Dispatch(name, plan.state, claimed, "")
            sending = self._sendings[name] = _Sending(plan, dispatch, message)
        in_doubt = sending.dispatch.in_doubt
        if not self._dispatcher.was_sent(sending.dispatch):
            if in_doubt:
                _, next_in = self._is_due_or_later(plan.entry)  # to ask Redis took a while
            # Counted from now, and not from when the first attempt failed.
            sending.following = self._advanced(plan, next_in)
            sending.dispatch.new = sending.following.state

        def publish(producer: Any) -> None:
            self._raised = None
            with sending.message.sent_in(term):
                if sending.entered:
                    self.apply_async(plan.entry, producer=producer, advance=False)
                else:
                    # Where monitoring tools look in; once for each tick.
                    sending.entered = True
                    self.apply_entry(plan.entry, producer=producer)
            raised, self._raised = self._raised, None
            if raised is not None:
                raise raised

        agreed = self._dispatcher.send(term, sending.dispatch, publish)
        return sending.following, agreed

    def _write(self, name: str, plan: Plan, following: Plan, term: int) -> bool:
        assert self._dispatcher is not None
        return self._dispatcher.write(term, {name: (plan.state, following.state)})

    # -- what is due when --------------------------------------------------------------

    def _planned(self, entry: Any, stored: str) -> Plan:
        """The plan to go on with, just elected."""
        for state in (stored, self._remembered(entry.name)):
            plan = Plan.restored(entry, state)
            if plan is not None:
                return self._caught_up(self._counted_anew(plan))
            plan = Plan.of_another_schedule(entry, state)
            if plan is not None:
                return plan if plan.claimed else self._changed(plan)
        if entry.name not in self._given:
            entry = counted_from(entry, entry.default_now())
        return Plan.anchored(entry, stored, due_of(entry, *self._is_due_or_later(entry)))

    def _changed(self, plan: Plan) -> Plan:
        """``plan`` once its schedule is another: that counts on from the last run."""
        plan = self._counted_anew(plan)
        due = due_of(plan.entry, *self._is_due_or_later(plan.entry))
        now = plan.entry.default_now()
        if at(due) < at(now) and occurrence_after(plan.entry.schedule, due) is not None:
            # Nobody knows since when it has this schedule: of what it missed, the latest only.
            due = latest_missed(plan.entry.schedule, due, now, 1)
        return self._caught_up(plan.postponed(due))

    def _counted_anew(self, plan: Plan) -> Plan:
        """``plan``, or if it is an interval's and last ran in the future, one counted from now."""
        now = plan.entry.default_now()
        if at(plan.entry.last_run_at) <= at(now) + _EARLY or plan.claimed:
            return plan
        if not isinstance(plan.entry.schedule, schedule):
            return plan
        # The clock was set back: it would be silent for as long.
        entry = counted_from(plan.entry, now)
        return plan.restarted(now, due_of(entry, *self._is_due_or_later(entry)))

    def _clock_went_back(self) -> bool:
        before, self._clock_read = self._clock_read, at(self.app.now())
        return self._clock_read < before - _EARLY

    def _caught_up(self, plan: Plan) -> Plan:
        """What of the missed ticks is to be sent."""
        now = plan.entry.default_now()
        if plan.claimed or at(plan.due) >= at(now):
            return plan
        mode = self._catch_up(plan.entry)
        if mode is CatchUp.NONE:
            entry = counted_from(plan.entry, now)
            return plan.restarted(now, due_of(entry, *self._is_due_or_later(entry)))
        plan = self._startable(plan, now)
        if mode is CatchUp.ALL and at(plan.due) < at(now):
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

    def _startable(self, plan: Plan, now: datetime.datetime) -> Plan:
        """``plan`` without what ``beat_cron_starting_deadline`` says is too late to start."""
        deadline = self.app.conf.beat_cron_starting_deadline
        timetable = plan.entry.schedule
        if deadline is None or not isinstance(timetable, crontab):
            return plan
        earliest = later(now, datetime.timedelta(seconds=-deadline))
        if at(plan.due) >= at(earliest):
            return plan
        startable = occurrence_after(timetable, earliest)
        return plan if startable is None else plan.postponed(startable)

    def _advanced(self, plan: Plan, next_in: float) -> Plan:
        """The plan after this tick, which may itself have been missed."""
        if self._catch_up(plan.entry) is CatchUp.ALL:
            following = occurrence_after(plan.entry.schedule, plan.due)
            if following is not None:
                return plan.dispatched(plan.due, following)
        now = plan.entry.default_now()
        entry = counted_from(plan.entry, now)
        if plan.claimed:
            # It need not be due by this beat's clock or schedule, and is over all the same.
            _, next_in = self._is_due_or_later(entry)
        return plan.dispatched(now, due_of(entry, False, next_in))

    def _catch_up(self, entry: Any) -> CatchUp:
        mode = catch_up_of(entry.name, entry.options, self._leadership.settings.beat_catch_up)
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
        if not isinstance(next_in, int | float) or math.isnan(next_in):
            return due_now, self.max_interval
        if due_now and isinstance(entry.schedule, crontab):
            # In the hour that clocks repeat, Celery takes what is due in its first run for due.
            due = occurrence_after(entry.schedule, entry.last_run_at)
            wait = 0.0 if due is None else at(due) - at(entry.default_now())
            if wait > 0:
                return False, wait
        return due_now, max(-_FAR, min(next_in, _FAR))

    def _push(self, name: str, plan: Plan) -> None:
        self._pushed += 1
        due = 0.0 if plan.claimed else at(plan.due)
        heapq.heappush(self._queue, (due, self._pushed, name))

    def _push_later(self, name: str, next_in: float) -> None:
        self._pushed += 1
        again = at(self._plans[name].entry.default_now()) + next_in
        heapq.heapreplace(self._queue, (again, self._pushed, name))


@dataclass(slots=True)
class _Sending:
    """A tick of ``-S leader`` that is being sent, in as many attempts as it takes."""

    #: The plan once it is sent.
    following: Plan
    dispatch: Dispatch
    message: Labelled
    #: Whether ``apply_entry`` was called for it.
    entered: bool = False


def _checked(entries: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a ``beat_schedule``, with their fields.

    Raises:
        LeaderError: it is none.
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


def _exit(*_: Any) -> None:
    raise SystemExit(0)


def _later(entry: Any, seconds: float) -> datetime.datetime:
    return later(entry.default_now(), datetime.timedelta(seconds=seconds))


class Labelled:
    """A schedule entry whose message has headers that name the tick; the same at each attempt.

    Args:
        entry: it keeps its own options.
        tick: the label of the tick.
        task_id: the id that the message must have. By default it is that of the entry's
            options, or a new one.
    """

    def __init__(self, entry: Any, tick: str, task_id: str | None) -> None:
        self._entry = entry
        self._tick = tick
        self._task_id = task_id
        self._options: dict[str, Any] | None = None

    @contextlib.contextmanager
    def sent_in(self, term: int) -> Iterator[None]:
        """While open, the entry has those options; what a tool adds to them lasts."""
        if self._options is None:
            self._options = self._own_options()
        labels = {"leader_term": term, "leader_tick": self._tick}
        self._options["headers"] = {**(self._options.get("headers") or {}), **labels}
        own, self._entry.options = self._entry.options, self._options
        try:
            yield
        finally:
            self._entry.options = own

    def _own_options(self) -> dict[str, Any]:
        options = {k: v for k, v in self._entry.options.items() if k != CATCH_UP_OPTION}
        task_id = self._task_id or options.get("task_id") or uuid()
        return {**options, "retry": False, "task_id": task_id}
