"""What all schedulers of this package share: they follow until elected, and then lead.

Guaranteed: a follower neither sends nor writes, and a turn of it is short, because beat's own
liveness checks wait for its end.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Collection
from typing import Any

from celery import signals

from celery_leader.errors import StoreUnavailable
from celery_leader.metrics_server import serve_metrics
from celery_leader.runtime import remote_control
from celery_leader.runtime.campaign import Campaign
from celery_leader.runtime.command_line import refusing_clearly
from celery_leader.runtime.leadership import Leadership, leadership_of
from celery_leader.runtime.schedulers import unread
from celery_leader.runtime.settings import BEAT
from celery_leader.tasks.leader_only import adopt_tasks
from celery_leader.tasks.routing import installed

from .broker_connection import BrokerConnection
from .candidate import BeatCandidate
from .dispatch import Dispatcher
from .fenced_store import FencedStore
from .plan import task_id_of
from .retries import Retries
from .shared_states import SharedStates
from .transport import PublishBuffer

logger = logging.getLogger(__name__)


class ElectedScheduler:
    """Put before a scheduler class: one of all beats leads, and the others follow.

    A subclass says in ``lead`` what a turn of the leader is, and in ``take_over`` what it reads
    when it is elected.
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
        self._candidate = BeatCandidate(app, self._leadership)
        self._retries = Retries()
        #: The term that this scheduler has taken over with; ``None``: take over before all else.
        self._led_term: int | None = None
        self._service: Any = None
        # Celery makes one scheduler for its banner, which must not take part.
        self._takes_part = not lazy or self._leadership.always_leads()
        self._send_as(app, None)
        super().__init__(app, *args, lazy=lazy, **kwargs)  # type: ignore[call-arg]
        if self._takes_part:
            self._take_part(app)

    def _take_part(self, app: Any) -> None:
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
        cls = type(self)
        self._candidate.start(f"{cls.__module__}.{cls.__qualname__}")
        self._send_as(app, self._candidate.campaign)

    def _send_as(self, app: Any, campaign: Campaign | None) -> None:
        """Make what reads the shared schedule and sends, in the name of ``campaign``."""
        fences = campaign is not None and self._leadership.redis.is_broker
        buffer = PublishBuffer() if fences else None
        heartbeat = self._candidate.broker_heartbeat
        self._shared_store = FencedStore(self._leadership, campaign)
        self._states = SharedStates(self._leadership, self._shared_store)
        broker = BrokerConnection(app, self._leadership, buffer, heartbeat)
        self._dispatcher = Dispatcher(app, self._leadership, self._shared_store, broker)

    @property
    def info(self) -> str:
        """The line of beat's banner that names the election and its Redis."""
        return f"    . leader election -> {self._leadership.redis.banner(BEAT)}"

    def leading_term(self) -> int | None:
        """The term this beat leads with at this moment, or ``None``; no I/O."""
        return self._candidate.term()

    def known_entries(self) -> Collection[str]:
        """The names of all entries there are, whether due or not.

        The state of others is kept for ``leader_schedule_retention``, since beats of another
        version of the app may know them.
        """
        return set(self.schedule)

    def is_future(self, moment: datetime.datetime) -> bool:
        """Whether nothing can have run at ``moment`` by a right clock."""
        return self._states.is_future(moment)

    # -- turns -------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One turn as the leader; a follower waits a step to be elected."""
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
            # Beat sleeps between turns where nothing can wake it; here something can.
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
            self._take_over_again()  # what was read so far may be half of it
            self._retries.failed("the schedule", exc)
            return self._pause()
        return self._candidate.longest_rest(wait)

    def take_over(self, term: int) -> bool:
        """Go on from what the last leader left, just elected; whether Redis agreed to that.

        Raises:
            StoreUnavailable: nobody knows.
        """
        return self._states.read(term, self.known_entries())

    def lead(self, *args: Any, **kwargs: Any) -> float:
        """One turn of the scheduler as the leader; how many seconds it may rest then."""
        return float(super().tick(*args, **kwargs))  # type: ignore[misc]

    def _take_over_again(self) -> None:
        """Read the shared schedule again before anything else."""
        self._led_term = None

    def _pause(self) -> float:
        return self._retries.pause(self.max_interval)

    # -- sending and writing -----------------------------------------------------------------

    @property
    def producer(self) -> Any:
        """What messages are published with; ``None`` while the broker cannot be reached.

        A scheduler's ``tick()`` asks for it when it has already counted the entry as sent, so
        this raises nothing; ``apply_async`` finds the broker by itself, and tries on.
        """
        if not self._takes_part:
            raise StoreUnavailable("a scheduler that was made for its banner sends nothing")
        return self._dispatcher.producer()

    def _own_id(self, name: str, tick: str) -> str | None:
        """The task id of a message that does not travel with its claim; others get a new one."""
        if self._dispatcher.fences_messages or not self._shared_store.is_shared:
            return None
        return task_id_of(self._leadership.settings.namespace, name, tick)

    def reserve(self, entry: Any) -> Any:
        """Advance an entry's state, which only the leader may."""
        if self.leading_term() is None:
            return entry
        return super().reserve(entry)  # type: ignore[misc]

    def sync(self) -> None:
        """Write the schedule's state, which only the leader may."""
        if self.leading_term() is not None:
            super().sync()  # type: ignore[misc]

    def close(self) -> None:
        """Write what is to be written, then resign; harmless the second time."""
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
        """Log what may be wrong; no log is set up before this."""
        self._leadership.tell_unknown_settings()

    def _warn_of_unread_rows(self) -> None:
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
            handlers.update(remote_control.HANDLERS)
