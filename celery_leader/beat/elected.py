"""The base of all schedulers of this package: they follow until elected, and then lead.

Guaranteed: a follower neither sends nor writes. Its turns are short, because beat's own liveness
checks wait for the end of a turn.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from typing import Any

from celery import signals

from celery_leader.errors import StoreUnavailable
from celery_leader.metrics_server import serve_metrics
from celery_leader.runtime import remote_control
from celery_leader.runtime.app_runtime import AppRuntime, runtime_of
from celery_leader.runtime.command_line import refusing_clearly
from celery_leader.runtime.local_candidate import LocalCandidate
from celery_leader.runtime.log import get_logger
from celery_leader.runtime.schedulers import TO_READ_THEM, unread
from celery_leader.runtime.settings import BEAT
from celery_leader.tasks.leader_only import adopt_tasks
from celery_leader.tasks.routing import installed

from .broker_connection import BrokerConnection
from .candidate import BeatCandidate
from .dispatcher import Dispatcher
from .fenced_store import FencedStore
from .plan import task_id_of
from .retries import Retries
from .shared_states import SharedStates
from .transport import PublishBuffer

logger = get_logger(__name__)


class ElectedScheduler:
    """Comes before a scheduler class in the bases: one of all beats leads, the others follow.

    A subclass defines a leader's turn in ``lead``. In ``take_over`` it reads what a new leader
    needs.
    """

    #: The errors of the scheduler's own store in an outage; the turn is then tried again.
    store_errors: tuple[type[Exception], ...] = ()

    #: Once anything has imported celery-redbeat, it reads this from every beat's scheduler.
    lock_key: Any = None

    app: Any
    schedule: Any
    max_interval: float
    _heap: Any

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        self._runtime: AppRuntime = runtime_of(app)
        with refusing_clearly():
            self._runtime.check()
        self._candidate = BeatCandidate(app, self._runtime)
        self._retries = Retries()
        #: The term for which this scheduler has taken over; ``None``: it must take over first.
        self._led_term: int | None = None
        self._service: Any = None
        # Celery makes one more scheduler, for its banner only. That one must not take part.
        self._takes_part = not lazy or self._runtime.always_leads()
        self._send_as(app, None)
        super().__init__(app, *args, lazy=lazy, **kwargs)  # type: ignore[call-arg]
        if self._takes_part:
            self._take_part(app)

    def _take_part(self, app: Any) -> None:
        adopt_tasks(app)
        if self._runtime.task_elections and not installed(app):
            logger.warning(
                "%s: this app has leader-only tasks but no workers that elect a leader, and they"
                " will fail: call celery_leader.install(app) where the app is made",
                BEAT,
            )
        with refusing_clearly():
            serve_metrics(app)
        signals.beat_init.connect(self._on_beat_init)
        cls = type(self)
        self._candidate.start(f"{cls.__module__}.{cls.__qualname__}")
        self._send_as(app, self._candidate.local)

    def _send_as(self, app: Any, candidate: LocalCandidate | None) -> None:
        """Make the store, the states and the dispatcher that act in the name of ``candidate``."""
        fences = candidate is not None and self._runtime.redis.is_broker
        buffer = PublishBuffer() if fences else None
        heartbeat = self._candidate.broker_heartbeat
        self._shared_store = FencedStore(self._runtime, candidate)
        self._states = SharedStates(self._runtime, self._shared_store)
        broker = BrokerConnection(app, self._runtime, buffer, heartbeat)
        self._dispatcher = Dispatcher(app, self._runtime, self._shared_store, broker)

    @property
    def info(self) -> str:
        """The line of beat's banner that names the election and its Redis."""
        return f"    . leader election -> {self._runtime.redis.banner(BEAT)}"

    def leading_term(self) -> int | None:
        """The term this beat leads with at this moment, or ``None``; no I/O."""
        return self._candidate.term()

    def known_entries(self) -> Collection[str]:
        """The names of all entries, whether due or not.

        States of other entries are kept for ``leader_schedule_retention``, since beats with another
        version of the app may know them.
        """
        return set(self.schedule)

    def is_future(self, moment: datetime.datetime) -> bool:
        """Whether ``moment`` is ahead of the clock of Redis by more than the clock tolerance."""
        return self._states.is_future(moment)

    # -- turns -------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Take one turn: a leader leads, and a follower waits one step for its election."""
        if self._service is not None:
            self._answer_remote_control()
        with self._candidate.turn():
            wait = self._one_turn(*args, **kwargs)
        self._candidate.show_life(rest=wait)
        return wait

    def _one_turn(self, *args: Any, **kwargs: Any) -> float:
        term = self.leading_term()
        if term is None:
            self._led_term = None
            self._dispatcher.look_for_broker()
            # Nothing can wake beat while it sleeps between turns. An election ends this wait.
            self._candidate.await_election(self.max_interval)
            return 0
        outages: tuple[type[Exception], ...] = (StoreUnavailable, *self.store_errors)
        try:
            if term != self._led_term:
                if not self.take_over(term):
                    return self._pause()
                self._led_term = term
            wait = self.lead(*args, **kwargs)
            if self._states.is_tidying_due and not self._states.tidy(term, self.known_entries()):
                self._take_over_again()
        except outages as exc:
            self._take_over_again()  # the schedule may have been read only in part
            self._retries.failed("the schedule", exc)
            return self._pause()
        return self._candidate.longest_rest(wait)

    def take_over(self, term: int) -> bool:
        """Go on from where the last leader stopped; return whether Redis agreed.

        Called after an election, and again when the shared schedule must be read anew.

        Raises:
            StoreUnavailable: nobody knows whether Redis agreed.
        """
        return self._states.read(term, self.known_entries())

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """Take one turn as the leader; return how many seconds beat may rest after it."""
        return float(super().tick(*args, **kwargs))  # type: ignore[misc]

    def _take_over_again(self) -> None:
        """Have the next turn read the shared schedule again before anything else."""
        self._led_term = None

    def _pause(self) -> float:
        return self._retries.pause(self.max_interval)

    # -- sending and writing -----------------------------------------------------------------

    @property
    def producer(self) -> Any:
        """The producer of messages; ``None`` while the broker cannot be reached.

        A scheduler's ``tick()`` asks for it after it has counted the entry as sent. So a lost
        broker raises nothing here. ``apply_async`` connects by itself, and tries again.

        Raises:
            StoreUnavailable: this scheduler was made for the banner only.
        """
        if not self._takes_part:
            raise StoreUnavailable("a scheduler that was made for its banner sends nothing")
        return self._dispatcher.producer()

    def _own_id(self, name: str, tick: str) -> str | None:
        """The fixed task id of a message that is sent apart from its claim; ``None``: no need."""
        if self._dispatcher.fences_messages or not self._shared_store.is_shared:
            return None
        return task_id_of(self._runtime.settings.namespace, name, tick)

    def reserve(self, entry: Any) -> Any:
        """Advance an entry's state; on a follower the entry stays as it is."""
        if self.leading_term() is None:
            # Celery sends the entry after this call. If a renewal that was late has come by then,
            # the entry is sent, and only the shared schedule knows.
            self._take_over_again()
            return entry
        return super().reserve(entry)  # type: ignore[misc]

    def sync(self) -> None:
        """Write the schedule's state; a follower writes nothing."""
        if self.leading_term() is not None:
            super().sync()  # type: ignore[misc]

    def close(self) -> None:
        """Write unsaved state, then resign; a second call does no harm."""
        try:
            super().close()  # type: ignore[misc]
        finally:
            self._dispatcher.close()
            self._candidate.resign()

    # -- beat's service ------------------------------------------------------------------------

    def _on_beat_init(self, sender: Any, **_: Any) -> None:
        if sender.scheduler is self:
            self._service = sender
            self._warn()

    def _warn(self) -> None:
        """Log warnings about the configuration; before this call, logging is not set up."""
        self._runtime.tell_unknown_settings()

    def _warn_of_unread_rows(self) -> None:
        missed = unread(self.app)
        if missed is not None:
            logger.warning("%s: %s; to have them sent, %s", BEAT, missed, TO_READ_THEM)

    def _answer_remote_control(self) -> None:
        """Have this beat answer the commands of elections, if it answers any commands."""
        # Beats have a mailbox from Celery 5.7 on, if it is switched on, and only once the service
        # has begun. It knows only ``ping``, and has no public way to add commands.
        service, self._service = self._service, None
        mailbox = getattr(service, "_pidbox", None)
        handlers = getattr(getattr(mailbox, "node", None), "handlers", None)
        if isinstance(handlers, dict):
            handlers.update(remote_control.HANDLERS)
