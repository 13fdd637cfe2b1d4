"""The election's thread: it acquires, renews and releases the leases of this process.

There is one for each process, however many elections. In each turn it asks every election what is
due, sends all of that in one round trip, gives the replies back, publishes each belief, and sleeps
until something is due or heard.

Guaranteed: a belief is published only from what an election decided, and ends by its deadline even
if this thread dies or hangs. Not guaranteed: that a listener hears of a deposition before the
deadline has passed; ask ``term()`` before each act.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from celery_leader.core.election import Wait
from celery_leader.core.events import Observer, Renewed, Unanswered
from celery_leader.core.lease import (
    Granted,
    LeaseStore,
    Record,
    Refused,
    Renew,
    Reply,
    Request,
    cursor_order,
)
from celery_leader.errors import StoreUnavailable

from .change_log import log_fields
from .clock import now
from .local_candidate import LocalCandidate
from .log import get_logger
from .wake_pipe import WakePipe

logger = get_logger(__name__)

_NO_NEWS = 60.0  # seconds; how long to sleep when nothing at all is due
_LATE = 0.15  # seconds; how much later than asked Redis may end a blocking read
_DEAF = 30.0  # seconds; the longest pause between blocking reads that fail


class ElectionThread:
    """Runs the candidates of this process in one daemon thread.

    Args:
        store: where leases live; used by this thread only.
        app: how this app names itself in records.
        patience: how late, in seconds, Redis may be with a blocking read of a follower.
        on_foreign: called with each record that another app seems to have made.
        observer: called with each event, in this thread; returns at once and raises nothing.
    """

    def __init__(
        self,
        store: LeaseStore,
        *,
        app: str = "",
        patience: float = 1.0,
        on_foreign: Callable[[str, Record], None] = lambda election, record: None,
        observer: Observer = lambda _: None,
    ) -> None:
        self._store = store
        self._patience = patience
        self._app = app
        self._on_foreign = on_foreign
        self._observer = observer
        self._candidates: list[LocalCandidate] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._pipe = WakePipe()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._disowned = False
        self._failed = 0
        self._last_contact: float | None = None
        self._deaf_until = 0.0
        self._deaf_for = 0.0

    # -- from any thread, and from signal handlers: no lock is taken ---------

    def start(self, candidate: LocalCandidate) -> None:
        """Take part in ``candidate.election`` from now on."""
        candidate.wanted = True
        self._calls.append(functools.partial(self._begin, candidate))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="leader-election", daemon=True)
            self._thread.start()
        self.wake()

    def resign(
        self, candidate: LocalCandidate, successor: str | None = None, reason: str | None = None
    ) -> threading.Event:
        """Stop leading at once, and give the lease up as soon as the thread can.

        Returns an event that is set when that has been done, or tried as often as a renewal would
        be. May be called from a signal handler. ``reason`` is what the history will say.
        """
        candidate.wanted = False
        candidate.view.withdraw()
        done = threading.Event()
        self._call(functools.partial(self._resign_now, candidate, successor, reason, done))
        return done

    def step_down(
        self, candidate: LocalCandidate, successor: str | None = None, reason: str | None = None
    ) -> None:
        """Stop leading at once, give the lease to ``successor`` if named, and campaign on."""
        candidate.wanted = False
        candidate.view.withdraw()
        self._call(functools.partial(self._step_down_now, candidate, successor, reason))

    def retire(self, candidate: LocalCandidate, then: Callable[[], None]) -> None:
        """Forget a candidate once it has nothing more to do, and call ``then``."""
        self._call(functools.partial(setattr, candidate, "retired", then))

    def reconnect(self) -> None:
        """Drop the connection and resolve the address again."""
        self._call(self._store.close)

    def lease_rejected(self, candidate: LocalCandidate, term: int, *, gone: bool) -> None:
        """Redis refused an act done with ``term``: another leads, or the record is ``gone``."""
        # The act may have begun in an earlier term, and this process may lead again.
        if not gone and candidate.view.term() == term:
            candidate.view.withdraw()
        self._call(lambda: candidate.election.lease_rejected(term, now(), gone=gone))

    def introduce(self, candidate: LocalCandidate, **changes: Any) -> None:
        """Have the register say something else of ``candidate``: fields of its info."""
        self._call(functools.partial(candidate.introduce, **changes))

    def wake(self) -> None:
        """Have the thread look around now."""
        self._pipe.wake()

    def _call(self, act: Callable[[], None]) -> None:
        self._calls.append(act)
        self.wake()

    @property
    def last_contact(self) -> float | None:
        """When the store last answered; ``None`` before it did."""
        return self._last_contact

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, timeout: float) -> None:
        """End the thread after its turn; beliefs then end by their deadlines."""
        self._stopping = True
        self.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def disown(self) -> None:
        """In a forked child: leave the thread and its socket to the parent.

        If the thread is a greenlet, the child has a copy of it. That copy must do no more.
        """
        self._stopping = self._disowned = True
        self._pipe.close()
        self._thread = None
        with contextlib.suppress(Exception):
            self._store.close()

    # -- the thread -----------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception:
                if self._disowned:
                    break
                # The thread must outlive whatever this was: without it nobody campaigns.
                logger.exception("election thread: a turn failed; it goes on")
                self._sleep(1.0)
        self._store.close()
        if self._disowned:
            # ``threading`` in the child does not know this greenlet. Its end would be an error,
            # so it waits for ever.
            threading.Event().wait()

    def _turn(self) -> None:
        self._make_calls()
        moment = now()
        due: list[tuple[LocalCandidate, Request]] = []
        wake_at: float | None = moment + _NO_NEWS
        for candidate in list(self._candidates):
            for requirement in candidate.requirements:
                candidate.look_at(requirement, moment)
                wake_at = min(wake_at or moment, requirement.look_again_at(moment))
            action = candidate.election.next_action(moment)
            if not isinstance(action, Wait):
                due.append((candidate, action))
            elif action.until is not None:
                wake_at = min(wake_at or action.until, action.until)
            candidate.publish(self._observer)
            if candidate.retired is not None and candidate.election.idle:
                self._candidates.remove(candidate)
                candidate.retired()
        if due:
            self._perform(due)
        elif not self._calls:
            self._wait(max(0.0, (wake_at or moment) - now()))

    # -- calls that other threads asked for ------------------------------------

    def _make_calls(self) -> None:
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _begin(self, candidate: LocalCandidate) -> None:
        if candidate not in self._candidates:
            self._candidates.append(candidate)
        candidate.election.campaign(now())

    def _resign_now(
        self,
        candidate: LocalCandidate,
        successor: str | None,
        reason: str | None,
        done: threading.Event,
    ) -> None:
        candidate.farewells.append(done)
        # An earlier call to step down may have set ``wanted`` again. Requirements that are
        # not met no longer matter.
        candidate.wanted = False
        candidate.unmet.clear()
        candidate.election.resign(now(), successor, reason)
        candidate.publish(self._observer)

    def _step_down_now(
        self, candidate: LocalCandidate, successor: str | None, reason: str | None
    ) -> None:
        candidate.election.step_down(now(), successor, reason)
        candidate.publish(self._observer)
        candidate.wanted = candidate.election.campaigning or bool(candidate.unmet)

    # -- talking to the store -------------------------------------------------

    def _perform(self, due: list[tuple[LocalCandidate, Request]]) -> None:
        sent_at = now()
        try:
            replies = self._store.perform([request for _, request in due])
        except StoreUnavailable as exc:
            replies = [exc] * len(due)
        moment = now()
        for (candidate, request), reply in zip(due, replies, strict=True):
            if isinstance(reply, StoreUnavailable):
                self._note_failure(candidate, request, reply)
                candidate.election.unanswered(request, moment, lasting=reply.lasting)
            else:
                self._note_contact(moment)
                for requirement in candidate.requirements:
                    # This comes before a grant is believed.
                    requirement.heard(reply.server_time, sent_at, moment)
                    candidate.look_at(requirement, moment)
                candidate.checks.look_at(reply)
                if isinstance(reply, Refused) and reply.record.app != self._app:
                    self._on_foreign(candidate.name, reply.record)
                candidate.election.replied(request, reply, sent_at=sent_at, now=moment)
                self._note_renewal(candidate, request, reply, moment - sent_at)
            candidate.publish(self._observer)

    def _wait(self, timeout: float) -> None:
        followed: dict[str, str] = {}
        leads = False
        for candidate in self._candidates:
            election = candidate.election
            if election.campaigning and not election.step_down_requested:
                leads = leads or election.term(now()) is not None
                cursor = followed.get(election.name, election.observed.cursor)
                followed[election.name] = min(cursor, election.observed.cursor, key=cursor_order)
        # A renewal must not wait for Redis to end a read.
        block, patience = (timeout - _LATE, _LATE) if leads else (timeout, self._patience)
        if not followed or self._failed or now() < self._deaf_until or block <= 0:
            self._sleep(timeout)
            return
        try:
            news = self._store.announcements(followed, block, self._pipe.fileno(), patience)
        except StoreUnavailable as exc:
            self._lose_touch(exc)
            return
        self._deaf_for = 0.0
        self._sleep(0.0)  # only to empty the pipe
        moment = now()
        for line in news:
            for candidate in self._candidates:
                election = candidate.election
                news_to_it = cursor_order(line.cursor) > cursor_order(election.observed.cursor)
                if election.name == line.election and news_to_it:
                    election.heard(line, moment)

    def _lose_touch(self, exc: StoreUnavailable) -> None:
        # News may have been missed, so ask; and where blocking reads never work
        # (a proxy, an ACL) do not try them all the time: the timers are enough.
        logger.debug("election thread: waiting for news failed: %s", exc)
        moment = now()
        self._deaf_until = moment + self._deaf_for
        self._deaf_for = min(2 * self._deaf_for + 0.1, _DEAF)
        for candidate in self._candidates:
            candidate.election.lost_touch(moment)

    def _sleep(self, timeout: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe.fileno(), selectors.EVENT_READ)
            if selector.select(timeout):
                self._pipe.drain()

    def _note_renewal(
        self, candidate: LocalCandidate, request: Request, reply: Reply, latency: float
    ) -> None:
        if isinstance(request, Renew) and isinstance(reply, Granted):
            node = candidate.election.holder
            self._observer(Renewed(candidate.name, node, request.term, latency))

    def _note_failure(
        self, candidate: LocalCandidate, request: Request, exc: StoreUnavailable
    ) -> None:
        self._failed += 1
        level = logging.WARNING if self._failed == 1 else logging.DEBUG
        logger.log(
            level,
            "%s: no answer, trying on: %s",
            candidate.name,
            exc,
            extra=log_fields(candidate.election),
        )
        term = request.term if isinstance(request, Renew) else None
        self._observer(Unanswered(candidate.name, candidate.election.holder, term))

    def _note_contact(self, moment: float) -> None:
        self._last_contact = moment
        if self._failed:
            logger.info(
                "election thread: Redis answers again after %d failed attempt(s)", self._failed
            )
            self._failed = 0
