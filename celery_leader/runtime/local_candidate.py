"""One candidate of this process: the election's thread runs it, and other threads may ask it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from celery_leader.core.candidate_info import CandidateInfo
from celery_leader.core.election import Election
from celery_leader.core.events import Change, Deposed, Elected, Observer, StepDownRequested
from celery_leader.core.watchdog import Requirement

from .answer_checks import AnswerChecks
from .change_log import log_change, log_fields
from .clock import now
from .log import get_logger
from .shared_memory import LeaseView

logger = get_logger(__name__)

Listener = Callable[[Change], None]


@dataclass(frozen=True, slots=True)
class Standing:
    """How one candidate of this process stands in its election, at one moment.

    Attributes:
        election: its name.
        node: the candidate's node name.
        term: the term it leads with, or ``None``.
        leader: the node that is known to lead; ``None`` while nobody is.
        leader_term: the leader's term, or the last known term.
        changes: how many leaderships this candidate has heard of.
        last_contact: seconds since Redis last answered this process; ``None`` if it never did.
        last_renewal: seconds since this candidate last got or kept the lease; ``None`` if never.
        leaderless_seconds: how long altogether nobody was known to lead.
        priority: the candidate's priority.
        eligible: whether it wants the lease.
        giving_way: whether it steps down: it keeps the lease until its running work has ended.
        giving_way_for: seconds since it was asked to; ``None`` if it was not.
        waits_for: the ids of the tasks whose bodies must end first.
    """

    election: str
    node: str
    term: int | None
    leader: str | None
    leader_term: int
    changes: int
    last_contact: float | None
    last_renewal: float | None
    leaderless_seconds: float
    priority: int
    eligible: bool
    giving_way: bool
    giving_way_for: float | None = None
    waits_for: tuple[str, ...] = ()

    @property
    def leading(self) -> bool:
        """Whether it leads."""
        return self.term is not None


@dataclass(slots=True)
class SteppingDown:
    """How far this process is with giving up one lease.

    Attributes:
        request: why, and in favour of which node.
        since: when it was asked to.
        closing: whether no further body starts. Before that, those that ran when the request came
            are waited for, and others go on.
        waits_for: the ids of the tasks whose bodies must end first.
    """

    request: StepDownRequested
    since: float
    closing: bool = False
    waits_for: tuple[str, ...] = ()


class LocalCandidate:
    """A candidate of one election in this process.

    Attributes:
        election: decides what to do; only the election's thread tells it anything.
        view: what this process and its children believe.
        listeners: called with each change, in the election's thread.
        led: set while this candidate leads.
        wanted: whether it is to lead if it can; ``False`` from the moment somebody resigns it.
        farewells: set when the lease has been given up, or no further attempt is made.
        retired: called when there is nothing more to do; ``None`` while it may be needed.
        requirements: what must hold for this process to lead.
        unmet: the requirements that do not hold, in the order in which they failed.
        checks: warns of trouble that an answer shows.
    """

    def __init__(
        self, election: Election, view: LeaseView, info: CandidateInfo | None = None
    ) -> None:
        self.election = election
        self.view = view
        self._info = info
        self.listeners: list[Listener] = []
        self.led = threading.Event()
        self.wanted = False
        self.farewells: list[threading.Event] = []
        self.retired: Callable[[], None] | None = None
        self.requirements: list[Requirement] = []
        self.unmet: list[Requirement] = []
        self.checks = AnswerChecks(election)

    @property
    def name(self) -> str:
        """The election's name."""
        return self.election.name

    def term(self) -> int | None:
        """The term this process leads with at this moment, or ``None``; no I/O."""
        return self.view.term()

    def standing(
        self, last_contact: float | None, stepping_down: SteppingDown | None = None
    ) -> Standing:
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
            priority=election.requester.priority,
            eligible=election.campaigning,
            giving_way=stepping_down is not None,
            giving_way_for=moment - stepping_down.since if stepping_down else None,
            waits_for=stepping_down.waits_for if stepping_down else (),
        )

    # -- in the election's thread ---------------------------------------------

    def publish(self, observer: Observer) -> None:
        """Make known what the election has decided: belief, listeners, observer, farewells."""
        election = self.election
        term = election.term(now())
        if term is None or not self.wanted:
            self.view.withdraw()
        else:
            self.view.publish(term, election.valid_until)
        for change in election.take_changes():
            self._tell(change)
            observer(change)
        if self.farewells and election.idle:
            for done in self.farewells:
                done.set()
            self.farewells.clear()

    def _tell(self, change: Change) -> None:
        if isinstance(change, Elected):
            self.led.set()
        elif isinstance(change, Deposed):
            self.led.clear()
        log_change(change)
        for listener in list(self.listeners):
            try:
                listener(change)
            except Exception:
                logger.exception("%s: a listener failed on %s", self.name, change)

    def look_at(self, requirement: Requirement, moment: float) -> None:
        """Keep this candidate from leading and campaigning while ``requirement`` does not hold."""
        fails, failed = requirement.fails(moment), requirement in self.unmet
        takes_part = bool(self.unmet) or self.election.campaigning
        if fails and not failed and takes_part:
            self._stand_aside(requirement, moment)
        elif failed and not fails:
            self._take_part_again(requirement, moment)

    def _stand_aside(self, requirement: Requirement, moment: float) -> None:
        self.unmet.append(requirement)
        trouble = requirement.trouble(moment)
        logger.log(
            requirement.level,
            "%s: %s: node %s does not lead until %s",
            self.name,
            trouble,
            self.election.holder,
            requirement.cure,
            extra=log_fields(self.election),
        )
        if requirement.keeps_place:
            self.election.abstain(moment, requirement.reason)
            self.introduce(unfit=trouble)
        elif self.election.campaigning:
            self.election.resign(moment, reason=requirement.reason)

    def _take_part_again(self, requirement: Requirement, moment: float) -> None:
        self.unmet.remove(requirement)
        logger.info(
            "%s: %s, node %s",
            self.name,
            requirement.relief,
            self.election.holder,
            extra=log_fields(self.election),
        )
        if requirement.keeps_place:
            self.introduce(unfit="")
        if self.wanted and not self.unmet:
            self.election.campaign(moment)

    def introduce(self, **changes: Any) -> None:
        """Have the register say something else of this candidate: fields of its info."""
        if self._info is not None:
            self._info = replace(self._info, **changes)
            self.election.requester.introduce(self._info.text())
