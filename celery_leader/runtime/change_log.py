"""Makes the log lines of an election from its changes."""

from __future__ import annotations

from typing import Any

from celery_leader.core.election import Election
from celery_leader.core.events import (
    AT_ONCE,
    Change,
    Copied,
    Deposed,
    Elected,
    Followed,
    StepDownRequested,
)

from .log import get_logger

logger = get_logger(__name__)


def log_fields(election: Election) -> dict[str, Any]:
    """The fields of each log record about this candidate, for logs that machines read."""
    return {"leader_election": election.name, "leader_node": election.holder}


def log_change(change: Change) -> None:
    """Log one line for ``change``, with the same facts as fields of the log record."""
    election, node, term = change.election, change.node, change.term
    fields: dict[str, Any] = {
        "leader_election": election,
        "leader_node": node,
        "leader_term": term,
    }
    match change:
        case Elected():
            logger.info("%s: elected, term %d, node %s", election, term, node, extra=fields)
        case Deposed(reason=reason, led_for=led_for):
            fields |= {"leader_reason": reason, "leader_led_for": round(led_for, 3)}
            text = "%s: deposed, term %d, node %s: %s, after %.1f s"
            logger.info(text, election, term, node, reason, led_for, extra=fields)
        case Followed(leader=leader):
            fields |= {"leader_followed": leader}
            text = "%s: %s leads, term %d, node %s follows"
            logger.info(text, election, leader, term, node, extra=fields)
        case Copied():
            logger.warning(
                "%s: Redis has requests of node %s that it did not make: a copy of its process runs"
                " (a cloned virtual machine?), or somebody wrote to the record. It goes on as a"
                " new candidate",
                election,
                node,
                extra=fields,
            )
        case StepDownRequested(reason=reason, successor=successor):
            fields |= {"leader_reason": reason, "leader_successor": successor}
            text = "%s: to step down, term %d, node %s: %s"
            logger.info(text, election, term, node, _why(reason, successor), extra=fields)


def _why(reason: str, successor: str | None) -> str:
    """Why a leader is to step down, for people."""
    if reason.endswith(AT_ONCE):
        return _why(reason.removesuffix(AT_ONCE), successor) + AT_ONCE
    match reason:
        case "outranked":
            return f"{successor} has a higher priority"
        case "held":
            return "its node is held"
        case "transferred":
            return f"somebody asked for a transfer to {successor}"
        case _:
            return "somebody asked it to resign"
