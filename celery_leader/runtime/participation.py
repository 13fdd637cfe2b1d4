"""The elections that this process takes part in, and the one thread that runs them."""

from __future__ import annotations

import atexit
import math
import os
import socket
import threading
import uuid
import weakref
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from celery_leader.core.candidate_info import CandidateInfo
from celery_leader.core.election import Election
from celery_leader.core.events import Elected
from celery_leader.core.kinship import Kin, called, kinship
from celery_leader.core.lease import Record
from celery_leader.core.names import check_name, check_node
from celery_leader.core.requester import Requester
from celery_leader.core.watchdog import Requirement
from celery_leader.errors import LeaderError

from .apps import app_identity, versions
from .beliefs import Beliefs
from .clock import now
from .context import ALWAYS_TERM, AppContext
from .election_thread import ElectionThread
from .local_candidate import Listener, LocalCandidate, Standing, SteppingDown
from .log import get_logger
from .node_names import NodeNames
from .observers import Observers
from .session import LeaseRedis

logger = get_logger(__name__)

_LONGEST_FAREWELL = 10.0  # seconds; a process must end soon, however long its lease is
_FOREIGN_INTERVAL = 3600.0  # seconds between two log lines about another project


class Participation:
    """Enters elections, and leaves them.

    Guaranteed: one thread and at most one connection, however many elections. A forked child
    begins with none of them.

    Attributes:
        stepping_down: elections whose lease this process is to give up, and how far it is.
    """

    def __init__(
        self,
        context: AppContext,
        beliefs: Beliefs,
        redis: LeaseRedis,
        observers: Observers,
        node_names: NodeNames,
    ) -> None:
        self._context = context
        self._beliefs = beliefs
        self._redis = redis
        self._observers = observers
        self._node_names = node_names
        self._lock = threading.Lock()
        self._candidates: list[LocalCandidate] = []
        self._election_thread: ElectionThread | None = None
        self._foreign_told_at = -math.inf
        self.stepping_down: dict[str, SteppingDown] = {}
        context.forks.call_in_child(self._after_fork)

    # -- beginning ------------------------------------------------------------

    def enter(
        self,
        election: str,
        node: str,
        listener: Listener | None = None,
        priority: int | None = None,
        requirements: Iterable[Requirement] = (),
        role: str = "process",
        scheduler: str = "",
        fenced: bool = True,
    ) -> LocalCandidate | None:
        """Take part in ``election`` as ``node``.

        Returns ``None`` where nothing is to be won: this process always leads, or a test decides.

        Args:
            election: its name.
            node: the candidate's name.
            listener: called with each change, in the election's thread.
            priority: ``leader_priority`` unless it is given.
            requirements: what must hold for this process to lead.
            role: ``worker``, ``beat`` or ``process``, for the register of candidates.
            scheduler: the scheduler class of a beat, for the register.
            fenced: whether a beat sends only while it leads, for the register.

        Raises:
            LeaderError: a name or the settings cannot be used.
        """
        check_name(election)
        check_node(node)
        self._context.entered.add(election)
        if self._beliefs.is_staged(election):
            return None
        if self._context.always_leads():
            self._observers.tell(Elected(election, node, ALWAYS_TERM))
            return None
        with self._lock:
            election_thread = self._running()
            priority = self._context.settings.priority if priority is None else priority
            info = self._info(role, priority, scheduler=scheduler, fenced=fenced)
            candidate = self._new_candidate(election, node, info, priority)
            candidate.requirements += requirements
            if listener is not None:
                candidate.listeners.append(listener)
            self._node_names.take(node)
            self._candidates.append(candidate)
        election_thread.start(candidate)
        return candidate

    # -- asking ---------------------------------------------------------------

    def node(self, election: str) -> str | None:
        """The node name under which this process takes part in ``election``."""
        for candidate in self._candidates:
            if candidate.name == election:
                return candidate.election.holder
        return None

    def standings(self) -> list[Standing]:
        """How each candidate of this process stands at this moment; no I/O."""
        contact = self._election_thread.last_contact if self._election_thread is not None else None
        return [
            candidate.standing(contact, self.stepping_down.get(candidate.name))
            for candidate in list(self._candidates)
        ]

    def runs(self, candidate: LocalCandidate) -> bool:
        """Whether this process runs ``candidate``, and not the process that it was forked from."""
        self._context.forks.notice()
        return candidate in self._candidates

    @property
    def farewell_timeout(self) -> float:
        """How many seconds to wait until a lease is given up; after that it is left to expire."""
        timing = self._context.settings.timing
        attempt = 2 * timing.operation_timeout + timing.renew_retry_delay
        return min(timing.renew_attempts * attempt, _LONGEST_FAREWELL)

    # -- telling the thread ---------------------------------------------------

    def look_around(self) -> None:
        """Have the election's thread check now whether this process is fit to lead."""
        if self._election_thread is not None:
            self._election_thread.wake()

    def lease_rejected(self, candidate: LocalCandidate, term: int, *, gone: bool) -> None:
        """Redis refused an act done with ``term``: another leads, or the record is ``gone``."""
        if self._election_thread is not None:
            self._election_thread.lease_rejected(candidate, term, gone=gone)

    def introduce(self, candidate: LocalCandidate, **changes: Any) -> None:
        """Have the register say something else of ``candidate``: fields of its info."""
        if self._election_thread is not None and self.runs(candidate):
            self._election_thread.introduce(candidate, **changes)

    def follow(self, live: Any) -> None:
        """The worker's consumer is connected with ``live``: keep the leases there too."""
        if self._redis.follow(live) and self._election_thread is not None:
            self._election_thread.reconnect()

    # -- ending ---------------------------------------------------------------

    def resign(
        self, candidate: LocalCandidate, successor: str | None = None, reason: str | None = None
    ) -> threading.Event:
        """Stop leading and campaigning, and give the lease up. Harmless when not leading.

        The event that is returned is set when that is done or was tried in vain. May be called
        from a signal handler. ``reason`` is what the history will say.
        """
        if self._election_thread is None or not self.runs(candidate):
            done = threading.Event()
            done.set()
            return done
        return self._election_thread.resign(candidate, successor, reason)

    def step_down(
        self, candidate: LocalCandidate, successor: str | None = None, reason: str | None = None
    ) -> None:
        """Give the lease up, to ``successor`` if one is named, and go on as a candidate.

        ``reason`` is what the history will say.
        """
        if self._election_thread is not None and self.runs(candidate):
            self._election_thread.step_down(candidate, successor, reason)

    def retire(self, candidate: LocalCandidate) -> None:
        """Forget a candidate that has resigned for good; its place in memory becomes free."""
        with self._lock:
            if self._election_thread is None or candidate not in self._candidates:
                return
            self._candidates.remove(candidate)
            self._node_names.give_back(candidate.election.holder)
            free_place = self._beliefs.retire(candidate.name, candidate.view)
        self._election_thread.retire(candidate, free_place)

    def resign_all(self) -> bool:
        """Give everything up and wait until that is done; whether it was done in time."""
        if self._context.forks.owner != os.getpid():
            return True
        farewells = [self.resign(candidate) for candidate in self._candidates]
        deadline = now() + self.farewell_timeout
        told = all(done.wait(max(0.0, deadline - now())) for done in farewells)
        self._observers.finish()
        return told

    def forget(self, election: str) -> bool:
        """Remove ``election`` from Redis and from this process; whether Redis had it.

        Raises:
            LeaderError: somebody takes part in it, or its lease has not been over for the length
                of one.
            StoreUnavailable: Redis did not answer.
        """
        if self.node(election) is not None:
            raise LeaderError(f"{election}: this process takes part; resign() first")
        with self._redis.session() as session:
            lease = self._context.settings.timing.lease_duration
            was_there = session.store.register.forget(election, lease)
        with self._lock:
            self._context.entered.discard(election)
            self._beliefs.forget(election)
        return was_there

    # -- small parts ----------------------------------------------------------

    def _running(self) -> ElectionThread:
        if self._election_thread is None:
            self._election_thread = ElectionThread(
                self._redis.open(),
                app=app_identity(self._context.app),
                patience=self._context.settings.timing.operation_timeout,
                on_foreign=self._warn_of_foreign,
                observer=self._observers.tell,
            )
            atexit.register(_resign_at_exit, weakref.ref(self))
        return self._election_thread

    def _new_candidate(
        self, name: str, node: str, info: CandidateInfo, priority: int
    ) -> LocalCandidate:
        settings = self._context.settings
        election = Election(
            Requester(
                name,
                holder=node,
                nonce=uuid.uuid4().hex,
                timing=settings.timing,
                app=info.app,
                priority=priority,
                preempt=settings.preempt,
                info=info.text(),
            )
        )
        return LocalCandidate(election, self._beliefs.view_for(name), info)

    def _info(self, role: str, priority: int, **of_beat: Any) -> CandidateInfo:
        """What a candidate of this process says of itself; no address, no password."""
        settings = self._context.settings
        return CandidateInfo(
            host=socket.gethostname(),
            pid=os.getpid(),
            role=role,
            app=app_identity(self._context.app),
            versions=versions(),
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

    def _warn_of_foreign(self, election: str, record: Record) -> None:
        """Log an error, again after an hour, if another project's app leads ``election``."""
        moment = now()
        if not record.app or moment < self._foreign_told_at + _FOREIGN_INTERVAL:
            return
        own = app_identity(self._context.app)
        kin = kinship(own, record.app)
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
            called(own),
        )

    def _after_fork(self, parent: int) -> None:
        # The parent's thread may have held the lock at that moment.
        self._lock = threading.Lock()
        if self._election_thread is not None:
            self._election_thread.disown()
        self._election_thread = None
        self._candidates = []


def _resign_at_exit(reference: weakref.ref[Participation]) -> None:
    participation = reference()
    if participation is not None:
        participation.resign_all()
