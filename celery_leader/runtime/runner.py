"""The only thread: it reads the clock, talks to the store and tells who listens.

One runner per process, however many elections. Each turn it asks every election
what is due, sends all of that in one round trip, hands the replies back, publishes
each belief, and sleeps until something is due or heard.

Guaranteed: a belief is published only from what an election decided, and ends by
its deadline even if this thread dies or hangs. Not guaranteed: that a listener hears
of a deposition before the deadline has passed; ask ``term()`` before each act.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from celery_leader.core.candidate_info import CandidateInfo
from celery_leader.core.changes import Change, Copied, Deposed, Elected, Followed, StepDownRequested
from celery_leader.core.election import Election, Wait
from celery_leader.core.events import (
    LeaderChanged,
    LeaderDeposed,
    LeaderElected,
    Observer,
    Renewed,
    Standing,
    Unanswered,
)
from celery_leader.core.lease import (
    Granted,
    LeaseStore,
    Missing,
    Namesake,
    Record,
    Refused,
    Released,
    Renew,
    Reply,
    Request,
    cursor_order,
)
from celery_leader.core.watchdog import Requirement
from celery_leader.errors import StoreUnavailable

from .clock import now
from .shared_memory import LeaseView
from .wake_pipe import WakePipe

logger = logging.getLogger(__name__)

Listener = Callable[[Change], None]

_NO_NEWS = 60.0  # seconds; how long to sleep when nothing at all is due
_LATE = 0.15  # seconds; how much later than asked Redis may end a blocking read
_DEAF = 30.0  # seconds; the longest pause between blocking reads that fail
_FLAP = "%s: Redis answers again after %d failed attempt(s)"


class Campaign:
    """One election in the hands of a runner: what other threads may see and ask of it."""

    def __init__(
        self, election: Election, view: LeaseView, info: CandidateInfo | None = None
    ) -> None:
        self.election = election
        self._info = info
        self.view = view
        self.listeners: list[Listener] = []
        self.led = threading.Event()
        self.wanted = False
        self.farewells: list[threading.Event] = []
        self.retired: Callable[[], None] | None = None
        #: What must hold for this process to lead.
        self.requirements: list[Requirement] = []
        #: Those of them that do not hold, in the order in which they failed.
        self.unmet: list[Requirement] = []
        #: Whether its record made no sense when it was last seen.
        self.damaged = False
        #: When another life of its node was first heard of, by the store's clock.
        self.namesake: float | None = None
        self.namesake_told = False

    @property
    def name(self) -> str:
        """The election's name."""
        return self.election.name

    def term(self) -> int | None:
        """The term this process leads with at this moment, or ``None``; no I/O."""
        return self.view.term()

    def say_unfit(self, trouble: str) -> None:
        """Have the register say why this candidate does not campaign; empty: it does."""
        if self._info is not None:
            self.election.candidacy.introduce(replace(self._info, unfit=trouble).text())

    def standing(self, last_contact: float | None, *, giving_way: bool) -> Standing:
        """How this candidate stands at this moment, for people to see; no I/O."""
        moment, election, term = now(), self.election, self.term()
        known, renewed_at = election.observed.leader, election.renewed_at
        return Standing(
            election=election.name,
            node=election.holder,
            term=term,
            leader=election.holder if term is not None else known.holder,
            leader_term=known.term,
            changes=known.changes,
            last_contact=None if last_contact is None else moment - last_contact,
            last_renewal=moment - renewed_at if renewed_at else None,
            leaderless_seconds=known.vacant_seconds(moment),
            priority=election.candidacy.priority,
            eligible=election.campaigning,
            giving_way=giving_way,
        )


@dataclass(frozen=True, slots=True)
class _Start:
    campaign: Campaign


@dataclass(frozen=True, slots=True)
class _Resign:
    campaign: Campaign
    successor: str | None
    reason: str | None
    done: threading.Event


@dataclass(frozen=True, slots=True)
class _StepDown:
    campaign: Campaign
    successor: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class _Retire:
    campaign: Campaign
    then: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Reconnect:
    pass


@dataclass(frozen=True, slots=True)
class _LeaseRejected:
    campaign: Campaign
    term: int
    gone: bool


_Order = _Start | _Resign | _StepDown | _Retire | _Reconnect | _LeaseRejected


class Runner:
    """Runs campaigns in one daemon thread.

    Args:
        store: where leases live; used by this thread only.
        app: how this app names itself in records.
        patience: how late, in seconds, Redis may be with a blocking read of a follower.
        on_foreign: called once with a record that another app seems to have made.
        observer: told what happens, in this thread; must return at once and raise nothing.
    """

    def __init__(
        self,
        store: LeaseStore,
        *,
        app: str = "",
        patience: float = 1.0,
        on_foreign: Callable[[str, Record], None] | None = None,
        observer: Observer = lambda _: None,
    ) -> None:
        self._store = store
        self._patience = patience
        self._app = app
        self._on_foreign = on_foreign
        self._observer = observer
        self._campaigns: list[Campaign] = []
        self._orders: deque[_Order] = deque()
        self._pipe = WakePipe()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._disowned = False
        self._failed = 0
        self._last_contact: float | None = None
        self._deaf_until = 0.0
        self._deaf_for = 0.0

    # -- from any thread, and from signal handlers: no lock is taken ---------

    def start(self, campaign: Campaign) -> None:
        """Take part in ``campaign.election`` from now on."""
        campaign.wanted = True
        self._orders.append(_Start(campaign))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="leader-election", daemon=True)
            self._thread.start()
        self.wake()

    def resign(
        self, campaign: Campaign, successor: str | None = None, reason: str | None = None
    ) -> threading.Event:
        """Stop leading at once, and give the lease up as soon as the thread can.

        Returns an event that is set when that has been done, or tried as often as
        a renewal would be. May be called from a signal handler. ``reason`` is what the
        history will say.
        """
        campaign.wanted = False
        campaign.view.withdraw()
        done = threading.Event()
        self._orders.append(_Resign(campaign, successor, reason, done))
        self.wake()
        return done

    def step_down(
        self, campaign: Campaign, successor: str | None = None, reason: str | None = None
    ) -> None:
        """Stop leading at once, give the lease to ``successor`` if named, and campaign on."""
        campaign.wanted = False
        campaign.view.withdraw()
        self._orders.append(_StepDown(campaign, successor, reason))
        self.wake()

    def retire(self, campaign: Campaign, then: Callable[[], None]) -> None:
        """Forget a campaign once it has nothing more to do, and call ``then``."""
        self._orders.append(_Retire(campaign, then))
        self.wake()

    def reconnect(self) -> None:
        """Have the thread drop its connection and resolve the address anew."""
        self._orders.append(_Reconnect())
        self.wake()

    def lease_rejected(self, campaign: Campaign, term: int, *, gone: bool) -> None:
        """The store refused an act done with ``term``: another leads, or the record is gone."""
        if not gone:
            campaign.view.withdraw()
        self._orders.append(_LeaseRejected(campaign, term, gone))
        self.wake()

    def wake(self) -> None:
        """Have the thread look around now."""
        self._pipe.wake()

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
        """In a forked child: this runner's thread and socket are the parent's.

        Of a greenlet the child has a copy, which is to end.
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
            # In the child threading has forgotten this greenlet, whose end would be an error.
            threading.Event().wait()

    def _turn(self) -> None:
        self._follow_orders()
        moment = now()
        due: list[tuple[Campaign, Request]] = []
        wake_at: float | None = moment + _NO_NEWS
        for campaign in list(self._campaigns):
            for requirement in campaign.requirements:
                self._look_at(campaign, requirement, moment)
                wake_at = min(wake_at or moment, requirement.look_again_at(moment))
            action = campaign.election.next_action(moment)
            if not isinstance(action, Wait):
                due.append((campaign, action))
            elif action.until is not None:
                wake_at = min(wake_at or action.until, action.until)
            self._publish(campaign)
            if campaign.retired is not None and campaign.election.idle:
                self._campaigns.remove(campaign)
                campaign.retired()
        if due:
            self._perform(due)
        elif not self._orders:
            self._wait(max(0.0, (wake_at or moment) - now()))

    def _look_at(self, campaign: Campaign, requirement: Requirement, moment: float) -> None:
        """Keep a candidate that is not fit from leading and campaigning until it is fit."""
        fails, failed = requirement.fails(moment), requirement in campaign.unmet
        takes_part = bool(campaign.unmet) or campaign.election.campaigning
        if fails and not failed and takes_part:
            campaign.unmet.append(requirement)
            trouble = requirement.trouble(moment)
            logger.log(
                requirement.level,
                "%s: %s: node %s does not lead until %s",
                campaign.name,
                trouble,
                campaign.election.holder,
                requirement.cure,
                extra=_fields(campaign),
            )
            if requirement.keeps_place:
                campaign.election.abstain(moment, requirement.reason)
                campaign.say_unfit(trouble)
            elif campaign.election.campaigning:
                campaign.election.resign(moment, reason=requirement.reason)
        elif failed and not fails:
            campaign.unmet.remove(requirement)
            logger.info(
                "%s: %s, node %s",
                campaign.name,
                requirement.relief,
                campaign.election.holder,
                extra=_fields(campaign),
            )
            if requirement.keeps_place:
                campaign.say_unfit("")
            if campaign.wanted and not campaign.unmet:
                campaign.election.campaign(moment)

    def _follow_orders(self) -> None:
        for _ in range(len(self._orders)):
            match self._orders.popleft():
                case _Start(campaign):
                    if campaign not in self._campaigns:
                        self._campaigns.append(campaign)
                    campaign.election.campaign(now())
                case _Resign(campaign, successor, reason, done):
                    campaign.farewells.append(done)
                    # Also after a step down that was ordered before. What fails no longer matters.
                    campaign.wanted = False
                    campaign.unmet.clear()
                    campaign.election.resign(now(), successor, reason)
                    self._publish(campaign)
                case _StepDown(campaign, successor, reason):
                    campaign.election.step_down(now(), successor, reason)
                    self._publish(campaign)
                    campaign.wanted = campaign.election.campaigning or bool(campaign.unmet)
                case _Retire(campaign, then):
                    campaign.retired = then
                case _Reconnect():
                    self._store.close()
                case _LeaseRejected(campaign, term, gone):
                    campaign.election.lease_rejected(term, now(), gone=gone)

    def _perform(self, due: list[tuple[Campaign, Request]]) -> None:
        sent_at = now()
        try:
            replies = self._store.perform([request for _, request in due])
        except StoreUnavailable as exc:
            replies = [exc] * len(due)
        moment = now()
        for (campaign, request), reply in zip(due, replies, strict=True):
            if isinstance(reply, StoreUnavailable):
                self._note_failure(campaign, request, reply)
                campaign.election.unanswered(request, moment, lasting=reply.lasting)
            else:
                self._note_contact(moment)
                for requirement in campaign.requirements:
                    # Before what is granted is believed.
                    requirement.heard(reply.server_time, sent_at, moment)
                    self._look_at(campaign, requirement, moment)
                self._check_answer(campaign, reply)
                campaign.election.replied(request, reply, sent_at=sent_at, now=moment)
                self._note_renewal(campaign, request, reply, moment - sent_at)
            self._publish(campaign)

    def _wait(self, timeout: float) -> None:
        followed: dict[str, str] = {}
        leads = False
        for campaign in self._campaigns:
            election = campaign.election
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
            for campaign in self._campaigns:
                election = campaign.election
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
        for campaign in self._campaigns:
            campaign.election.lost_touch(moment)

    def _sleep(self, timeout: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe.fileno(), selectors.EVENT_READ)
            if selector.select(timeout):
                self._pipe.drain()

    def _publish(self, campaign: Campaign) -> None:
        election = campaign.election
        term = election.term(now())
        if term is None or not campaign.wanted:
            campaign.view.withdraw()
        else:
            campaign.view.publish(term, election.valid_until)
        for change in election.take_changes():
            self._tell(campaign, change)
        if campaign.farewells and election.idle:
            for done in campaign.farewells:
                done.set()
            campaign.farewells.clear()

    def _tell(self, campaign: Campaign, change: Change) -> None:
        if isinstance(change, Elected):
            campaign.led.set()
        elif isinstance(change, Deposed):
            campaign.led.clear()
        _log(campaign, change)
        for listener in list(campaign.listeners):
            try:
                listener(change)
            except Exception:
                logger.exception("%s: a listener failed on %s", campaign.name, change)
        self._observe(campaign, change)

    def _observe(self, campaign: Campaign, change: Change) -> None:
        name, node = campaign.name, campaign.election.holder
        match change:
            case Elected(term):
                self._observer(LeaderElected(name, node, term))
                self._observer(LeaderChanged(name, node, term, leader=node))
            case Deposed(term, reason, led_for):
                self._observer(LeaderDeposed(name, node, term, reason, change.sudden, led_for))
            case Followed(term, leader):
                self._observer(LeaderChanged(name, node, term, leader))

    def _note_renewal(
        self, campaign: Campaign, request: Request, reply: Reply, latency: float
    ) -> None:
        if isinstance(request, Renew) and isinstance(reply, Granted):
            node = campaign.election.holder
            self._observer(Renewed(campaign.name, node, request.term, latency))

    def _note_failure(self, campaign: Campaign, request: Request, exc: StoreUnavailable) -> None:
        self._failed += 1
        level = logging.WARNING if self._failed == 1 else logging.DEBUG
        logger.log(
            level, "%s: no answer, trying on: %s", campaign.name, exc, extra=_fields(campaign)
        )
        term = request.term if isinstance(request, Renew) else None
        self._observer(Unanswered(campaign.name, campaign.election.holder, term))

    def _note_contact(self, moment: float) -> None:
        self._last_contact = moment
        if self._failed:
            logger.info(_FLAP, "election thread", self._failed)
            self._failed = 0

    def _check_answer(self, campaign: Campaign, reply: Reply) -> None:
        """Say what should not be, each once."""
        if isinstance(reply, Refused):
            self._check_app(campaign, reply.record)
        damaged = isinstance(reply, Missing) and reply.damaged
        if damaged and not campaign.damaged:
            logger.warning(
                "%s: somebody wrote to this election's record in Redis, and what stands there makes"
                " no sense: it is written anew once no lease can run, node %s",
                campaign.name,
                campaign.election.holder,
                extra=_fields(campaign),
            )
        campaign.damaged = damaged
        if not isinstance(reply, Released) and reply.namesake is not None:
            self._check_namesake(campaign, reply.namesake)

    def _check_namesake(self, campaign: Campaign, namesake: Namesake) -> None:
        if campaign.namesake is None:
            campaign.namesake = namesake.seen_at
        # It may have been killed a moment before this one began: only a living one is heard again.
        if namesake.seen_at <= campaign.namesake or campaign.namesake_told:
            return
        campaign.namesake_told = True
        logger.warning(
            "%s: another living node is called %s too%s. Each may lead, and what is said of that"
            " name (status, holds, transfers, metrics) is said of both. Give each a name of its"
            " own: --hostname of a worker, node= of a LeaderElection, or another host name",
            campaign.name,
            campaign.election.holder,
            f" ({namesake.place})" if namesake.place else "",
            extra=_fields(campaign),
        )

    def _check_app(self, campaign: Campaign, record: Record) -> None:
        if self._on_foreign is not None and record.app != self._app:
            self._on_foreign(campaign.name, record)


def _fields(campaign: Campaign) -> dict[str, object]:
    """What each log record says beside its text, for logs that machines read."""
    return {"leader_election": campaign.name, "leader_node": campaign.election.holder}


def _log(campaign: Campaign, change: Change) -> None:
    """One line for a change, with the same facts as fields of the log record."""
    name, node, term = campaign.name, campaign.election.holder, change.term
    fields = _fields(campaign) | {"leader_term": term}
    match change:
        case Elected():
            logger.info("%s: elected, term %d, node %s", name, term, node, extra=fields)
        case Deposed(_, reason, led_for):
            fields |= {"leader_reason": reason, "leader_led_for": round(led_for, 3)}
            logger.info(
                "%s: deposed, term %d, node %s: %s, after %.1f s",
                name,
                term,
                node,
                reason,
                led_for,
                extra=fields,
            )
        case Followed(_, leader):
            fields |= {"leader_followed": leader}
            logger.info(
                "%s: %s leads, term %d, node %s follows", name, leader, term, node, extra=fields
            )
        case Copied():
            logger.warning(
                "%s: Redis has requests of node %s that it did not make: a copy of its process runs"
                " (a cloned virtual machine?), or somebody wrote to the record. It goes on as a"
                " new candidate",
                name,
                node,
                extra=fields,
            )
        case StepDownRequested(_, reason, successor):
            fields |= {"leader_reason": reason, "leader_successor": successor}
            why = _why(reason, successor)
            logger.info(
                "%s: to give way, term %d, node %s: %s", name, term, node, why, extra=fields
            )


def _why(reason: str, successor: str | None) -> str:
    """What a leader is to give way for, for people."""
    match reason:
        case "outranked":
            return f"{successor} has a higher priority"
        case "held":
            return "its node is held"
        case "transferred":
            return f"somebody asked for a transfer to {successor}"
        case _:
            return "somebody asked it to resign"
