"""What belongs to one Celery app in this process: its elections and what runs them.

Kept beside the app and not on it, in one weak dictionary. Guaranteed: one thread
and at most one connection however many elections; a forked child keeps its parent's
beliefs to read and starts with no thread, connection or campaign of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import socket
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click
from billiard.process import current_process
from celery import Celery, _state
from celery.local import Proxy
from celery.utils.nodenames import host_format, nodename, nodesplit

from celery_leader.core.candidate_info import CandidateInfo
from celery_leader.core.changes import StepDownRequested
from celery_leader.core.election import Election
from celery_leader.core.events import Event, LeaderChanged, LeaderElected, Observer, Standing
from celery_leader.core.identity import Kin, called, identity, kinship
from celery_leader.core.lease import Record
from celery_leader.core.names import check_name, check_node
from celery_leader.core.watchdog import Heartbeat, Requirement
from celery_leader.errors import LeaderError, StoreUnavailable
from celery_leader.signals import Delivery
from celery_leader.store.client import RedisClient
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.store.register import Candidate
from celery_leader.store.scripts import Keys

from .clock import now
from .lease_source import LeaseSource, lease_source
from .runner import Campaign, Listener, Runner
from .settings import BEAT, WORKER, Settings, unknown_settings
from .shared_memory import Address, Belief, BeliefPage, beliefs_at

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The term of a process that leads because there is nobody else to lead.
ALWAYS_TERM = 1

#: Tells a pool process that was not forked where its worker's beliefs are.
_BELIEFS = "CELERY_LEADER_BELIEFS"

#: In shared memory, beside the elections: that the worker is going. No election can be called so.
_SHUT = "(shut)"

_LONGEST_FAREWELL = 10.0  # seconds; longer leases than usual do not keep a process from its end
_LAST_SIGNALS = 1.0  # seconds; how long the end of a process waits for receivers of signals

#: What Celery's own remote control calls a beat that is given a host only.
_BEAT_NAME = "celerybeat"

_PAUSE = 0.05  # seconds between looks at a record where waiting for news does not work
_FOREIGN_INTERVAL = 3600.0  # seconds from one word about another project to the next
_LONGEST_HOLD = 10 * 365 * 86400  # seconds


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads an election.

    Attributes:
        holder: the leader's node name.
        term: its term, the fencing token.
        seconds_left: how long its lease still runs if it is not renewed.
        since: when it was elected, UTC, by the clock of Redis.
    """

    holder: str
    term: int
    seconds_left: float
    since: datetime.datetime


@dataclass(frozen=True, slots=True)
class Handover:
    """What came of asking a leader to give way.

    Attributes:
        election: which one.
        former: who led when it was asked, and may lead still.
        former_term: with which term.
        leader: who leads with a later term, or ``None`` if nobody did in time.
        term: that term.
    """

    election: str
    former: str
    former_term: int
    leader: str | None
    term: int | None


@dataclass(frozen=True, slots=True)
class Visit:
    """A short stay at the Redis that keeps the leases.

    Attributes:
        client: the connection.
        store: the leases, over that connection.
        keys: the names of this app's keys.
        setting: the setting that names this Redis.
        address: where it is, without a password.
    """

    client: RedisClient
    store: RedisLeaseStore
    keys: Keys
    setting: str
    address: str


class Leadership:
    """One app's part in its elections, in this process."""

    def __init__(self, app: Celery) -> None:
        self._app = weakref.ref(app)
        self._lock = threading.Lock()
        self._settings: Settings | None = None
        self._always: bool | None = None
        self._page = BeliefPage()
        # Of this process's own campaigns; and of the worker whose child it is.
        self._beliefs: dict[str, tuple[Belief, ...]] = {}
        self._inherited: dict[str, tuple[Belief, ...]] | None = None
        self._handed_down: dict[str, tuple[Belief, ...]] = {}
        self._handed_down_by: int | None = None
        self._allotted: dict[str, Belief] = {}
        self._shut: Belief | None = None
        self._campaigns: list[Campaign] = []
        self._source: LeaseSource | None = None
        self._runner: Runner | None = None
        self._nodes: set[str] = set()
        self._entered: set[str] = set()
        self._staged: dict[str, Belief] = {}
        self._owner = os.getpid()
        self._foreign_told_at = -math.inf
        self._observers: list[Observer] = []
        self._delivery = Delivery()
        #: Elections whose lease is to be given up, once no body needs it, and why.
        self.giving_way: dict[str, StepDownRequested] = {}
        #: Seconds that Redis may take over one answer to a visit, if not as for a lease.
        self.visit_timeout: float | None = None
        #: Elections that leader-only tasks name, filled in as tasks are found.
        self.task_elections: set[str] = set()

    @property
    def app(self) -> Celery:
        """The app; it outlives everything that asks."""
        app = self._app()
        assert app is not None
        return app

    @property
    def settings(self) -> Settings:
        """The app's settings, read once.

        Raises:
            LeaderError: one of them cannot be used.
        """
        if self._settings is None:
            self._settings = Settings.of(self.app)
        return self._settings

    def elections(self) -> set[str]:
        """Every election this app knows of."""
        return {
            WORKER,
            BEAT,
            *(self.settings.elections or ()),
            *self.task_elections,
            *self._entered,
        }

    def queue(self, election: str) -> str:
        """The queue of the leader of ``election``."""
        queue = self.settings.queue
        return queue if election == WORKER else f"{queue}.{election}"

    def check(self) -> None:
        """Refuse a configuration that cannot work, before anything is started.

        Raises:
            LeaderError: what to change.
        """
        self.always_leads()

    def tell_unknown_settings(self) -> None:
        """Log the ``leader_*`` settings that there are none of."""
        for complaint in unknown_settings(self.app):
            logger.warning("%s", complaint)

    def always_leads(self) -> bool:
        """Whether there is nobody else to lead: eager mode, or a broker in this process.

        Raises:
            LeaderError: the broker cannot keep leases.
        """
        if self.app.conf.task_always_eager:
            return True
        if self._always is None:
            self._always = self._new_source() is None
        return self._always

    # -- asking ---------------------------------------------------------------

    def term(self, election: str) -> int | None:
        """The term this process leads ``election`` with, or ``None``; no I/O.

        Raises:
            LeaderError: the app knows no such election.
        """
        self._notice_fork()
        beliefs = self._beliefs.get(election) or self._inherit().get(election)
        if beliefs is not None:
            for belief in beliefs:
                term = belief.term()
                if term is not None:
                    return term
            return None
        if election not in self.elections():
            raise LeaderError(
                f"there is no election {election!r} here; known are"
                f" {', '.join(sorted(self.elections()))}. Add it to leader_elections or"
                " start a LeaderElection of that name"
            )
        return ALWAYS_TERM if self.always_leads() else None

    def free_node_name(self, role: str) -> str:
        """A node name that no other candidate of this process was given."""
        name = node_name(role)
        with self._lock:
            number = 1
            while (node := name if number == 1 else f"{name}.{number}") in self._nodes:
                number += 1
            self._nodes.add(node)
        return node

    def beat_node_name(self) -> str:
        """The node name of this process's beat.

        As ``celery beat --hostname`` says, where Celery has that; or ``leader_beat_node``; or
        one with the process id, since several beats may run on one host.
        """
        said = _beat_hostname() or self.settings.beat_node
        if said is None:
            return self.free_node_name(BEAT)
        name, host = nodesplit(said)
        return check_node(host_format(nodename(name or _BEAT_NAME, host)))

    def is_candidate(self, election: str) -> bool:
        """Whether this process takes part in ``election``, or the worker it is a child of."""
        self._notice_fork()
        return election in self._beliefs or election in self._inherit()

    def node(self, election: str) -> str | None:
        """The node name under which this process takes part in ``election``."""
        for campaign in self._campaigns:
            if campaign.name == election:
                return campaign.election.holder
        return None

    def record(self, election: str) -> Record | None:
        """What Redis says of ``election``, over a connection of its own.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        with self.visit() as store:
            return store.read(election)

    def candidates(self, election: str) -> list[Candidate]:
        """Who takes part in ``election``, over a connection of its own.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        with self.visit() as store:
            return store.candidates(election)

    # -- giving orders ----------------------------------------------------------

    def hand_over(self, election: str, successor: str | None = None, *, timeout: float) -> Handover:
        """Have the leader give way, to ``successor`` if one is named; wait for who comes next.

        It does so when what it does has come to an end: a worker's leader-only bodies, the
        dispatch of a beat. Without a successor the others are let in first; where there is
        no other, the same node leads again.

        Raises:
            LeaderError: nobody leads, or the lease cannot go to ``successor``.
            StoreUnavailable: Redis did not answer. The order may have been given.
        """
        deadline = now() + timeout
        patience = self.settings.timing.operation_timeout
        with self.visit() as store:
            asked = store.ask(election, successor)
            cursor, record = asked.cursor, store.read(election)
            while not _led_anew(record, asked.term) and (left := deadline - now()) > 0:
                try:
                    news = store.announcements({election: cursor}, left, None, patience)
                    cursor = news[-1].cursor if news else cursor
                except StoreUnavailable:
                    # A user of Redis who may not read streams that way still sees the record.
                    threading.Event().wait(min(_PAUSE, left))
                record = store.read(election)
        later = record if _led_anew(record, asked.term) else None
        return Handover(
            election,
            asked.holder,
            asked.term,
            leader=later.holder if later else None,
            term=later.term if later else None,
        )

    def hold(
        self, node: str, elections: Iterable[str], duration: float | None = None
    ) -> dict[str, bool]:
        """Keep ``node`` out of ``elections``, for ``duration`` seconds if given.

        Returns for each of them whether ``node`` is a candidate there. If it leads, it gives
        way as soon as what it does has come to an end.

        Raises:
            LeaderError: the name or the duration cannot be used.
            StoreUnavailable: Redis did not answer. Some may have been told.
        """
        check_node(node)
        if duration is not None and not 0 < duration <= _LONGEST_HOLD:
            raise LeaderError(
                f"a hold of {duration:g} s is not possible: it must be above 0 and"
                f" {_LONGEST_HOLD:,} s at most"
            )
        with self.visit() as store:
            return {name: store.hold(name, node, duration) for name in elections}

    def free(self, node: str, elections: Iterable[str]) -> dict[str, bool]:
        """Let ``node`` into ``elections`` again; for each of them, whether it was held.

        Raises:
            LeaderError: the name cannot be used.
            StoreUnavailable: Redis did not answer. Some may have been told.
        """
        check_node(node)
        with self.visit() as store:
            return {name: store.free(name, node) for name in elections}

    def leader(self, election: str) -> Leader | None:
        """Who leads ``election``, or ``None`` when nobody does.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        if election in self._staged or self.always_leads():
            moment = datetime.datetime.now(datetime.timezone.utc)
            term = self.term(election) if election in self._staged else ALWAYS_TERM
            if term is None:
                return None
            return Leader(node_name(election), term, float("inf"), moment)
        record = self.record(election)
        if record is None or not record.led:
            return None
        since = datetime.datetime.fromtimestamp(record.elected_at, datetime.timezone.utc)
        return Leader(record.holder, record.term, record.remaining, since)

    def valid_until(self, election: str, term: int) -> float | None:
        """Until when this process leads ``election`` at least, if still with ``term``; no I/O."""
        beliefs = self._beliefs.get(election) or self._inherit().get(election, ())
        until = max((belief.valid_until for belief in beliefs), default=0.0)
        return until if self.term(election) == term else None

    # -- who watches ------------------------------------------------------------

    def observe(self, observer: Observer) -> None:
        """Tell ``observer`` from now on what happens, in the thread that it happens in.

        It must return at once and do no I/O; what it raises is logged.
        """
        self._observers.append(observer)

    def tell(self, event: Event) -> None:
        """Tell observers, and have the receivers of signals told; raises nothing."""
        for observer in list(self._observers):
            try:
                observer(event)
            except Exception:
                logger.exception("an observer failed on %s", event)
        task = getattr(event, "task", None)
        self._delivery.send(event, self.app if task is None else self.app._tasks.get(task))

    def standings(self) -> list[Standing]:
        """How each candidate of this process stands at this moment; no I/O."""
        contact = self._runner.last_contact if self._runner is not None else None
        return [
            campaign.standing(contact, giving_way=campaign.name in self.giving_way)
            for campaign in list(self._campaigns)
        ]

    def finish_signals(self) -> None:
        """Before this process ends: let receivers hear of the end, if they do not take long."""
        if not self._delivery.finish(_LAST_SIGNALS):
            logger.warning("receivers of signals are still busy and are not waited for")

    @contextlib.contextmanager
    def staged(self, election: str) -> Iterator[Belief]:
        """For tests: while open, the belief that this yields decides ``election``, and no Redis."""
        staged, beliefs = self._staged.get(election), self._beliefs.get(election)
        belief = BeliefPage().allot(check_name(election))
        self._staged[election], self._beliefs[election] = belief, (belief,)
        try:
            yield belief
        finally:
            _put_back(self._staged, election, staged)
            _put_back(self._beliefs, election, beliefs)

    def is_staged(self, election: str) -> bool:
        """For tests: whether a test decides ``election``."""
        return election in self._staged

    # -- taking part ------------------------------------------------------------

    def allot(self, elections: Iterable[str]) -> None:
        """Give elections their place in shared memory, before a pool forks."""
        if not self.always_leads():
            for name in elections:
                self._allotted[name] = self._new_belief(check_name(name))
            self._shut = self._page.allot(_SHUT)

    def shut(self) -> None:
        """The worker goes: no leader-only body starts any more, also not in its pool processes."""
        if self._shut is not None:
            self._shut.publish(ALWAYS_TERM, float("inf"))

    @property
    def is_shut(self) -> bool:
        """Whether the worker that this process is, or belongs to, is going; no I/O.

        In a pool process: once ``term`` was asked for.
        """
        # Once and for ever: no clock has to be asked.
        return self._shut is not None and self._shut.valid_until > 0

    def share(self) -> None:
        """Have pool processes that will not be forked find what this process believes."""
        address = self._page.share()
        os.environ[_BELIEFS] = json.dumps(
            {
                "worker": os.getpid(),
                "app": self._called,
                "path": address.path,
                "mark": address.mark,
            }
        )

    def campaign(
        self,
        election: str,
        holder: str,
        listener: Listener | None = None,
        priority: int | None = None,
        requirements: Iterable[Requirement] = (),
        role: str = "process",
        scheduler: str = "",
        fenced: bool = True,
    ) -> Campaign | None:
        """Take part in ``election`` as ``holder``; ``None`` where there is nothing to win.

        ``priority`` is ``leader_priority`` unless it is given. ``requirements`` are what must
        hold for this process to lead. ``role`` is what the register of candidates says of
        this process; of a beat, it says also its ``scheduler`` class, and whether that is
        ``fenced``: sends only while it leads.

        Raises:
            LeaderError: the settings cannot be used.
        """
        self._entered.add(election)
        if election in self._staged:
            return None
        if self.always_leads():
            self.tell(LeaderElected(election, holder, ALWAYS_TERM))
            self.tell(LeaderChanged(election, holder, ALWAYS_TERM, leader=holder))
            return None
        with self._lock:
            runner = self._running()
            self._nodes.add(holder)
            priority = self.settings.priority if priority is None else priority
            info = self._info(role, priority, scheduler=scheduler, fenced=fenced)
            campaign = self._new_campaign(check_name(election), check_node(holder), info, priority)
            campaign.requirements += requirements
            if listener is not None:
                campaign.listeners.append(listener)
            self._campaigns.append(campaign)
        runner.start(campaign)
        return campaign

    def new_heartbeat(self, what: str) -> Heartbeat | None:
        """The heartbeat of ``what``; ``None`` where ``leader_watchdog`` is off."""
        patience = self.settings.watchdog
        return Heartbeat(what, patience) if patience else None

    def look_around(self) -> None:
        """Have the election's thread see now whether this process is fit to lead."""
        if self._runner is not None:
            self._runner.wake()

    def runs(self, campaign: Campaign) -> bool:
        """Whether ``campaign`` is this process's, not that of the one it was forked from."""
        self._notice_fork()
        return campaign in self._campaigns

    def believes(self, campaign: Campaign) -> bool:
        """Whether ``campaign`` is this process's, or that of the worker whose child it is."""
        return self.runs(campaign) or campaign.belief in self._inherit().get(campaign.name, ())

    def resign(
        self, campaign: Campaign, successor: str | None = None, reason: str | None = None
    ) -> threading.Event:
        """Give up; the event is set when that is done. Harmless when not leading.

        May be called from a signal handler. ``reason`` is what the history will say.
        """
        if self._runner is None or not self.runs(campaign):
            done = threading.Event()
            done.set()
            return done
        return self._runner.resign(campaign, successor, reason)

    def step_down(
        self, campaign: Campaign, successor: str | None = None, reason: str | None = None
    ) -> None:
        """Give the lease up, to ``successor`` if one is named, and go on as a candidate.

        ``reason`` is what the history will say.
        """
        if self._runner is not None and self.runs(campaign):
            self._runner.step_down(campaign, successor, reason)

    def retire(self, campaign: Campaign) -> None:
        """Forget a campaign that has resigned for good; its place is used again."""
        with self._lock:
            if self._runner is None or campaign not in self._campaigns:
                return
            self._campaigns.remove(campaign)
            self._nodes.discard(campaign.election.holder)
            others = tuple(b for b in self._beliefs[campaign.name] if b is not campaign.belief)
            if others:
                self._beliefs[campaign.name] = others
            else:
                del self._beliefs[campaign.name]
            page = self._page

        def then() -> None:
            page.release(campaign.belief, campaign.name)
            if campaign.name not in self._entered:  # it was forgotten meanwhile
                page.forget(campaign.name)

        self._runner.retire(campaign, then)

    def forget(self, election: str) -> bool:
        """Remove ``election`` from Redis and from this process; whether Redis had it.

        Raises:
            LeaderError: somebody takes part in it, or its lease has not been over for long.
            StoreUnavailable: Redis did not answer.
        """
        if any(campaign.name == election for campaign in self._campaigns):
            raise LeaderError(f"{election}: this process takes part; resign() first")
        with self.visit() as store:
            was_there = store.forget(election, self.settings.timing.lease_duration)
        with self._lock:
            self._entered.discard(election)
            self._page.forget(election)
        return was_there

    def lease_rejected(self, campaign: Campaign, term: int, *, gone: bool) -> None:
        """Redis refused something done with ``term``: it is over, or its record is gone."""
        if self._runner is not None:
            self._runner.lease_rejected(campaign, term, gone=gone)

    def client_beside(self) -> RedisClient:
        """A connection to where the elections' own goes, for one thread of the caller's.

        It follows when that one goes elsewhere: what is done in a leader's name belongs
        where its lease is.
        """
        source = self._source
        assert source is not None
        return RedisClient(
            source.connect_beside,
            setting=source.setting,
            operation_timeout=self.settings.timing.operation_timeout,
            place=lambda: source.connected,
        )

    @property
    def leases_on_broker(self) -> bool:
        """Whether messages and leases live in the same Redis, so that one script can do both."""
        return not self.always_leads() and self.settings.url is None

    @property
    def leases_where_consumed(self) -> bool:
        """Whether the leases are on the broker that this app's workers consume from."""
        conf = self.app.conf
        return self.leases_on_broker and conf.broker_write_url == conf.broker_read_url

    def where(self, election: str) -> str:
        """One line for banners: which election, and which Redis keeps it."""
        source = self._new_source()
        return f"{election} @ {source.address if source else 'this process alone'}"

    @property
    def keys(self) -> Keys:
        """The names of this app's keys."""
        assert self._source is not None
        return Keys(self.settings.namespace, self._source.key_prefix)

    def resign_all(self) -> bool:
        """Give everything up and wait until that is done; whether it was done in time."""
        if self._owner != os.getpid():
            return True
        farewells = [self.resign(campaign) for campaign in self._campaigns]
        deadline = now() + self.farewell_timeout
        told = all(done.wait(max(0.0, deadline - now())) for done in farewells)
        self.finish_signals()
        return told

    @property
    def farewell_timeout(self) -> float:
        """How long, in seconds, to wait for a lease to be given up before leaving it to expire."""
        timing = self.settings.timing
        attempt = 2 * timing.operation_timeout + timing.renew_retry_delay
        return min(timing.renew_attempts * attempt, _LONGEST_FAREWELL)

    def follow(self, live: Any) -> None:
        """The worker's consumer is connected with ``live``: keep the leases there too."""
        if self._source is None or not self.leases_where_consumed:
            return
        if self._source.follow(live) and self._runner is not None:
            self._runner.reconnect()

    # -- small parts --------------------------------------------------------------

    @property
    def _called(self) -> str:
        """What this app is called in every process that imports it."""
        return f"{self.app.main or ''}|{self.settings.namespace}"

    def _inherit(self) -> dict[str, tuple[Belief, ...]]:
        """What the worker believes whose child this process is; nothing in any other process."""
        if self._inherited is None:
            # Before it knows whose child it is, a process may already be importing the app.
            worker = worker_pid()
            if worker is None:
                return {}
            if worker == self._handed_down_by:
                self._inherited = self._handed_down
            else:
                self._inherited = self._left_by(worker)
        return self._inherited

    def _left_by(self, worker: int) -> dict[str, tuple[Belief, ...]]:
        """What ``worker`` believes, which has not forked this process but started it afresh."""
        said = json.loads(os.environ.get(_BELIEFS) or "{}")
        found: dict[str, tuple[Belief, ...]] = {}
        if said.get("worker") == worker and said["app"] == self._called:
            for name, belief in beliefs_at(Address(said["path"], said["mark"])):
                found[name] = (*found.get(name, ()), belief)
        (self._shut,) = found.pop(_SHUT, (None,))
        return found

    def _new_source(self, operation_timeout: float | None = None) -> LeaseSource | None:
        settings = self.settings
        return lease_source(
            self.app,
            url=settings.url,
            transport_options=settings.transport_options,
            operation_timeout=operation_timeout or settings.timing.operation_timeout,
        )

    def _client(self, source: LeaseSource) -> RedisClient:
        return RedisClient(
            source.connect,
            setting=source.setting,
            operation_timeout=self.settings.timing.operation_timeout,
        )

    def _store(self, client: RedisClient, keys: Keys) -> RedisLeaseStore:
        return RedisLeaseStore(
            client,
            keys,
            history_size=self.settings.history_size,
            wait_replicas=self.settings.wait_replicas,
        )

    @contextlib.contextmanager
    def visit_server(self) -> Iterator[Visit]:
        """A connection of its own to the Redis that keeps the leases, closed at the end.

        For any thread.
        """
        patience = self.visit_timeout or self.settings.timing.operation_timeout
        source = self._new_source(patience)
        if source is None:
            raise LeaderError("this app's broker is in-process memory: it keeps no elections")
        client = RedisClient(
            source.connect_anywhere, setting=source.setting, operation_timeout=patience
        )
        keys = Keys(self.settings.namespace, source.key_prefix)
        try:
            yield Visit(client, self._store(client, keys), keys, source.setting, source.address)
        finally:
            client.close()

    @contextlib.contextmanager
    def visit(self) -> Iterator[RedisLeaseStore]:
        """A store over a connection of its own, for any thread, closed at the end."""
        with self.visit_server() as visit:
            yield visit.store

    def _running(self) -> Runner:
        if self._runner is None:
            self._source = self._new_source()
            assert self._source is not None
            self._runner = Runner(
                self._store(self._client(self._source), self.keys),
                app=app_identity(self.app),
                patience=self.settings.timing.operation_timeout,
                on_foreign=self._foreign,
                observer=self.tell,
            )
            atexit.register(_resign_at_exit, weakref.ref(self))
        return self._runner

    def _new_campaign(self, name: str, holder: str, info: CandidateInfo, priority: int) -> Campaign:
        election = Election(
            name,
            holder=holder,
            nonce=uuid.uuid4().hex,
            timing=self.settings.timing,
            app=app_identity(self.app),
            priority=priority,
            preempt=self.settings.preempt,
            info=info.text(),
        )
        belief = self._allotted.pop(name) if name in self._allotted else self._new_belief(name)
        return Campaign(election, belief, info)

    def _info(self, role: str, priority: int, **of_beat: Any) -> CandidateInfo:
        """What a candidate of this process says of itself; no address, no password."""
        settings = self.settings
        return CandidateInfo(
            host=socket.gethostname(),
            pid=os.getpid(),
            role=role,
            app=app_identity(self.app),
            versions=_versions(),
            settings={
                **{f"leader_{name}": value for name, value in asdict(settings.timing).items()},
                "leader_namespace": settings.namespace,
                "leader_queue": settings.queue,
                "leader_priority": priority,
                "leader_preempt": settings.preempt,
                "leader_history_size": settings.history_size,
                "leader_wait_replicas": settings.wait_replicas,
            },
            **of_beat,
        )

    def _new_belief(self, name: str) -> Belief:
        belief = self._page.allot(name)
        self._beliefs[name] = (*self._beliefs.get(name, ()), belief)
        return belief

    def _foreign(self, election: str, record: Record) -> None:
        """Say, loudly and again after an hour, that another project's app leads ``election``."""
        moment = now()
        if not record.app or moment < self._foreign_told_at + _FOREIGN_INTERVAL:
            return
        kin = kinship(app_identity(self.app), record.app)
        if kin is Kin.SAME:
            return
        self._foreign_told_at = moment
        logger.error(
            "%s: %s, which leads, %s of another project (%s; this one is %s): their tasks are"
            " others. Two projects share election keys in one Redis, and only one of them is"
            " led: give one of them another leader_namespace, and another leader_queue or"
            " task_default_queue",
            election,
            record.holder,
            "is" if kin is Kin.OTHER else "may be",
            called(record.app),
            called(app_identity(self.app)),
        )

    def _bequeath(self) -> None:
        """In a forked child: leave what its parent believes to it if it is a worker's child.

        That it is one is told later. What such a child forks is one too. Nobody else may
        believe what another process believes: it would be a second leader.
        """
        parents = self._beliefs
        self._beliefs = {name: parents[name] for name in self._staged}
        if worker_pid() is None:
            self._inherited = None
            self._handed_down, self._handed_down_by = parents, self._owner
        else:
            self._inherit()

    def _notice_fork(self) -> None:
        # A server written in C (uWSGI) may fork without telling Python.
        if os.getpid() != self._owner:
            self._after_fork_in_child()

    def _after_fork_in_child(self) -> None:
        # The parent's thread may have held any lock of ours at that moment.
        self._lock = threading.Lock()
        if self._runner is not None:
            self._runner.disown()
        self._runner = None
        self._source = None
        self._campaigns = []
        self._allotted = {}
        self._bequeath()
        # What is written here goes elsewhere.
        self._page = BeliefPage()
        self._owner = os.getpid()
        self._delivery = Delivery()


def _put_back(beliefs: dict[str, T], election: str, before: T | None) -> None:
    if before is None:
        del beliefs[election]
    else:
        beliefs[election] = before


_leaderships: weakref.WeakKeyDictionary[Celery, Leadership] = weakref.WeakKeyDictionary()


def worker_pid() -> int | None:
    """Whose pool process or embedded beat this process is; ``None`` if it is nobody's."""
    pid: int | None = getattr(current_process(), "_parent_pid", None)
    return pid


def celery_app(app: Any, asking: str) -> Celery:
    """``app`` itself, also where ``celery.current_app`` stands for it.

    Raises:
        LeaderError: it is none, as the app of a web framework; it was given to ``asking``.
    """
    if isinstance(app, Proxy):
        app = app._get_current_object()
    if not isinstance(app, Celery):
        raise LeaderError(f"{asking} takes a Celery app, and {app!r} is none")
    return app


def leadership_of(app: Celery) -> Leadership:
    """The one ``Leadership`` of ``app``, made at the first call."""
    leadership = _leaderships.get(app)
    if leadership is None:
        leadership = _leaderships.setdefault(app, Leadership(app))
    return leadership


def _after_fork_in_child() -> None:
    for leadership in list(_leaderships.values()):
        leadership._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _resign_at_exit(reference: weakref.ref[Leadership]) -> None:
    leadership = reference()
    if leadership is not None:
        leadership.resign_all()


def _beat_hostname() -> str | None:
    """What ``celery beat`` was given as ``--hostname``; Celery does not tell its schedulers."""
    context = click.get_current_context(silent=True)
    if context is None or context.command.name != BEAT:
        return None
    said = context.params.get("hostname")
    return said if isinstance(said, str) and said else None


def node_name(role: str) -> str:
    """A node name for a process that is not a worker: several may run on one host."""
    return f"{role}@{socket.gethostname()}:{os.getpid()}"


def app_identity(app: Celery) -> str:
    """What tells this app from another project's."""
    return identity(app.main or "", app.tasks)


def _led_anew(record: Record | None, term: int) -> bool:
    return record is not None and record.led and record.term > term


@functools.cache
def _versions() -> dict[str, str]:
    """Of what decides how a candidate behaves."""
    packages = ("celery_leader", "celery", "redis")
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


@contextlib.contextmanager
def refusing_clearly() -> Iterator[None]:
    """End a command line with one line, and anything else with the error itself."""
    try:
        yield
    except LeaderError as exc:
        if click.get_current_context(silent=True) is None:
            raise
        raise click.ClickException(str(exc)) from exc


@contextlib.contextmanager
def current(app: Celery) -> Iterator[None]:
    """Make ``app`` the current app for a while."""
    before = _state.get_current_app()
    app.set_current()
    try:
        yield
    finally:
        before.set_current()
