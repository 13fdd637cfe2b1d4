"""Remote control of elections: ``celery inspect leader``, ``celery control leader_resign``.

Every node is asked, and answers of itself; an order is for the one that leads. Guaranteed:
an order takes the way of all orders, over the election's record, and is carried out when what
the leader does has come to an end. Not guaranteed: an answer; a node whose event loop
stands gives none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from celery.worker.control import control_command, inspect_command

from celery_leader.core.events import Standing
from celery_leader.errors import LeaderError

from .leadership import Leadership, leadership_of
from .settings import WORKER

Handler = Callable[..., dict[str, Any]]


def standings(leadership: Leadership) -> dict[str, dict[str, Any]]:
    """How this node stands in each of its elections, as plain values."""
    return {each.election: _plain(each) for each in leadership.candidacies.standings()}


def leader(state: Any, **_: Any) -> dict[str, Any]:
    """How each node stands in its leader elections."""
    return standings(leadership_of(state.app))


def leader_resign(state: Any, election: str = WORKER, **_: Any) -> dict[str, Any]:
    """Have the leader give way to the other candidates, between leader-only bodies."""
    return _order(state, election, None)


def leader_transfer(
    state: Any, node: str | None = None, election: str = WORKER, **_: Any
) -> dict[str, Any]:
    """Have the leader give way to NODE, between leader-only bodies."""
    if not node:
        return {"error": "name the node that is to lead: leader_transfer NODE [ELECTION]"}
    return _order(state, election, node)


#: What a node answers to, by name.
HANDLERS: dict[str, Handler] = {
    "leader": leader,
    "leader_resign": leader_resign,
    "leader_transfer": leader_transfer,
}


def register() -> None:
    """Make the commands known to Celery: to a worker, and to the command line that asks."""
    inspect_command(name="leader")(leader)
    control_command(name="leader_resign", args=[("election", str)], signature="[ELECTION=worker]")(
        leader_resign
    )
    control_command(
        name="leader_transfer",
        args=[("node", str), ("election", str)],
        signature="NODE [ELECTION=worker]",
    )(leader_transfer)


def _order(state: Any, election: str, successor: str | None) -> dict[str, Any]:
    leadership = leadership_of(state.app)
    try:
        if leadership.always_leads() or leadership.beliefs.term(election) is None:
            return {"ok": f"does not lead {election}"}
        with leadership.redis.session() as session:
            asked = session.store.ask(election, successor)
    except LeaderError as exc:
        return {"error": str(exc)}
    to = f" to {successor}" if successor else ""
    return {"ok": f"gives {election} up{to}, term {asked.term}, when what it runs has ended"}


def _plain(standing: Standing) -> dict[str, Any]:
    facts = {"leading": standing.leading, **dataclasses.asdict(standing)}
    del facts["election"]
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()}
