"""One process's part in an election of any name, for code that is no worker and no beat.

Guaranteed: a started election campaigns in the background until it is resigned. Not guaranteed:
that a ``with`` block ends when the lead is lost; ask ``term()`` or ``check()`` before each act.
"""

from __future__ import annotations

import datetime
import threading
from dataclasses import dataclass
from types import TracebackType

from celery import Celery

from celery_leader.core.events import Change, StepDownRequested
from celery_leader.core.names import check_name, check_node
from celery_leader.errors import LeaderError, NotLeader

from .app_runtime import runtime_of
from .apps import celery_app
from .clock import now
from .context import ALWAYS_TERM
from .local_candidate import LocalCandidate
from .node_names import node_name

_GLANCE = 0.1  # seconds between looks at a belief that may change without waking this thread


@dataclass(frozen=True, slots=True)
class Leader:
    """The leader of an election.

    Attributes:
        holder: its node name.
        term: its term, the fencing token.
        seconds_left: how long its lease still runs if it is not renewed.
        since: when it was elected, UTC, by the clock of Redis.
    """

    holder: str
    term: int
    seconds_left: float
    since: datetime.datetime


class LeaderElection:
    """One process's part in the election ``name``; for any process that has the app.

    ::

        with LeaderElection(app, "reports") as election:
            if election.wait_until_leader(timeout=60):
                write_report(term=election.term())

    Each object is a candidate of its own, also within one process. A process that is forked
    from this one takes no part before it calls ``start`` itself.

    Args:
        app: the Celery app; its broker (or ``leader_url``) keeps the lease.
        name: the election. Everybody who names it takes part in the same one.
        node: this candidate's node name, which nobody else should have; by default
            ``name@host:pid``, with a number from the second candidate of a process on.

    Raises:
        LeaderError: the app, the name or a setting cannot be used.
    """

    def __init__(self, app: Celery, name: str, *, node: str | None = None) -> None:
        # Kept here, because the runtime ends with the app and the caller may drop the app.
        self._app = celery_app(app, "LeaderElection")
        self._runtime = runtime_of(self._app)
        self._name = check_name(name)
        self._named = node is not None
        self._node = check_node(node) if node else self._runtime.node_names.unused(name)
        self._candidate: LocalCandidate | None = None
        self._started = False

    @property
    def name(self) -> str:
        """The election's name."""
        return self._name

    @property
    def node(self) -> str:
        """This candidate's node name."""
        return self._node

    def start(self) -> LeaderElection:
        """Campaign from now on, in the background; returns at once."""
        participation = self._runtime.participation
        if self._candidate is None or not participation.runs(self._candidate):
            if self._candidate is not None and not self._named:
                # In a forked child: the candidate is its parent's, and so is the name.
                self._node = self._runtime.node_names.unused(self._name)
            self._candidate = participation.enter(self._name, self._node, self._on_change)
        self._started = True
        return self

    def resign(self, successor: str | None = None) -> bool:
        """Stop leading and campaigning; give the lease to ``successor`` if one is named.

        Harmless when not leading. Returns whether Redis was told; if not, the lease
        expires by itself. Waits a few seconds at most.
        """
        self._started = False
        candidate, self._candidate = self._candidate, None
        if candidate is None:
            return True
        participation = self._runtime.participation
        told = participation.resign(candidate, successor).wait(participation.farewell_timeout)
        participation.retire(candidate)
        return told

    def forget(self) -> bool:
        """Remove what Redis keeps of this election; whether there was anything.

        For names that are used once and never again. The history is removed too. The same name
        may be used again at any time, and its terms go on growing.

        Raises:
            LeaderError: somebody takes part in it (a killed candidate counts for three leases),
                or its last lease has not been over for the length of one.
            StoreUnavailable: Redis did not answer.
        """
        return self._runtime.participation.forget(self._name)

    def is_leader(self) -> bool:
        """Whether this process leads at this moment; no I/O."""
        return self.term() is not None

    def term(self) -> int | None:
        """The term this process leads with at this moment, or ``None``; no I/O."""
        if not self._started:
            return None
        candidate = self._candidate
        if candidate is None:
            return self._runtime.beliefs.term(self._name)
        return candidate.term() if self._is_ours(candidate) else None

    def check(self) -> int:
        """The term this process leads with.

        Raises:
            NotLeader: it does not lead.
        """
        term = self.term()
        if term is None:
            raise NotLeader(f"{self._node} does not lead {self._name!r}")
        return term

    def leader(self) -> Leader | None:
        """Ask Redis who leads; ``None`` if nobody does. The election need not be started.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        staged = self._runtime.beliefs.is_staged(self._name)
        if staged or self._runtime.always_leads():
            moment = datetime.datetime.now(datetime.timezone.utc)
            term = self._runtime.beliefs.term(self._name) if staged else ALWAYS_TERM
            return Leader(node_name(self._name), term, float("inf"), moment) if term else None
        with self._runtime.redis.session() as session:
            record = session.store.read(self._name)
        if record is None or not record.led:
            return None
        since = datetime.datetime.fromtimestamp(record.elected_at, datetime.timezone.utc)
        return Leader(record.holder, record.term, record.remaining, since)

    def wait_until_leader(self, timeout: float | None = None) -> bool:
        """Wait until this process leads, or for ``timeout`` seconds; whether it leads.

        Raises:
            LeaderError: the election was not started in this process.
        """
        candidate = self._candidate
        forked = candidate is not None and not self._is_ours(candidate)
        if not self._started or forked:
            raise LeaderError(f"start() the election {self._name!r} before waiting to lead it")
        deadline = float("inf") if timeout is None else now() + timeout
        while not self.is_leader():
            if now() >= deadline or self._candidate is None:
                return False
            # Set and not leading: this process was paused, or is a forked child of it.
            led = threading.Event() if self._candidate.led.is_set() else self._candidate.led
            led.wait(min(_GLANCE, deadline - now()))
        return True

    def _on_change(self, change: Change) -> None:
        # The caller does the leader's work and asks before each act. Nothing here could wait for
        # that work to end.
        if isinstance(change, StepDownRequested) and self._candidate is not None:
            self._runtime.participation.step_down(self._candidate, change.successor, change.reason)

    def _is_ours(self, candidate: LocalCandidate) -> bool:
        """Whether this process runs ``candidate``, or the worker of this pool process does."""
        runs = self._runtime.participation.runs(candidate)
        return runs or self._runtime.beliefs.inherits(self._name, candidate.view)

    def __enter__(self) -> LeaderElection:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.resign()
