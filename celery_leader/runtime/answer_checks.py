"""Warns of answers that show a damaged record or another living node of the same name."""

from __future__ import annotations

from celery_leader.core.election import Election
from celery_leader.core.lease import Missing, Namesake, Released, Reply

from .change_log import log_fields
from .log import get_logger

logger = get_logger(__name__)


class AnswerChecks:
    """Looks at each answer to one candidate, and warns once of each trouble."""

    def __init__(self, election: Election) -> None:
        self._election = election
        self._damaged = False
        # When another life of this node was first heard of, by the store's clock.
        self._namesake: float | None = None
        self._namesake_told = False

    def look_at(self, reply: Reply) -> None:
        """Warn if something is wrong with ``reply``."""
        damaged = isinstance(reply, Missing) and reply.damaged
        if damaged and not self._damaged:
            logger.warning(
                "%s: somebody wrote to this election's record in Redis, and what stands there makes"
                " no sense: it is written anew once no lease can run, node %s",
                self._election.name,
                self._election.holder,
                extra=log_fields(self._election),
            )
        self._damaged = damaged
        if not isinstance(reply, Released) and reply.namesake is not None:
            self._look_at_namesake(reply.namesake)

    def _look_at_namesake(self, namesake: Namesake) -> None:
        if self._namesake is None:
            self._namesake = namesake.seen_at
        # The other may have been killed just before this one began. Only a living one is heard
        # again.
        if namesake.seen_at <= self._namesake or self._namesake_told:
            return
        self._namesake_told = True
        logger.warning(
            "%s: another living node is called %s too%s. Each may lead, and what is said of that"
            " name (status, holds, transfers, metrics) is said of both. Give each a name of its"
            " own: --hostname of a worker, node= of a LeaderElection, or another host name",
            self._election.name,
            self._election.holder,
            f" ({namesake.place})" if namesake.place else "",
            extra=log_fields(self._election),
        )
