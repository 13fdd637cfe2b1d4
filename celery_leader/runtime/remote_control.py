"""Remote control: ``celery inspect leader``, ``celery control leader_resign`` and the like.

Each node answers for itself, and only the leader follows an order. Guaranteed: an order goes
over the election's record, like every other order. Not guaranteed: an answer, because a node
whose event loop is stuck gives none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from celery.worker.control import control_command, inspect_command

from celery_leader.core.names import printable
from celery_leader.errors import LeaderError

from .app_runtime import AppRuntime, runtime_of
from .local_candidate import Standing
from .settings import WORKER

Handler = Callable[..., dict[str, Any]]


def standings(runtime: AppRuntime) -> dict[str, dict[str, Any]]:
    """This node's state in each of its elections, as plain values."""
    return {each.election: _plain(each) for each in runtime.participation.standings()}


def leader(state: Any, **_: Any) -> dict[str, Any]:
    """Show the state of each node in its leader elections."""
    return standings(runtime_of(state.app))


def leader_resign(state: Any, election: str = WORKER, **_: Any) -> dict[str, Any]:
    """Have the leader give up its lease when its leader-only tasks have ended."""
    return _order(runtime_of(state.app), election, None)


def leader_transfer(
    state: Any, node: str | None = None, election: str = WORKER, **_: Any
) -> dict[str, Any]:
    """Have the leader give its lease to NODE when its leader-only tasks have ended."""
    if not node:
        return {"error": "name the node that is to lead: leader_transfer NODE [ELECTION]"}
    return _order(runtime_of(state.app), election, node)


#: The commands that a node answers, by name.
HANDLERS: dict[str, Handler] = {
    "leader": leader,
    "leader_resign": leader_resign,
    "leader_transfer": leader_transfer,
}


def register() -> None:
    """Register the commands with Celery, in a worker and in the command line that calls them."""
    inspect_command(name="leader")(leader)
    control_command(name="leader_resign", args=[("election", str)], signature="[ELECTION=worker]")(
        leader_resign
    )
    control_command(
        name="leader_transfer",
        args=[("node", str), ("election", str)],
        signature="NODE [ELECTION=worker]",
    )(leader_transfer)


def _order(runtime: AppRuntime, election: str, successor: str | None) -> dict[str, Any]:
    try:
        if runtime.always_leads() or runtime.beliefs.term(election) is None:
            return {"ok": f"does not lead {election}"}
        # Nothing here may wait for the next leader: it would hold up the worker's event loop.
        order = runtime.orders.hand_over(election, successor, timeout=0)
    except LeaderError as exc:
        # Celery's command line prints it as it is.
        return {"error": printable(str(exc))}
    to = f" to {successor}" if successor else ""
    return {"ok": f"gives {election} up{to}, term {order.former_term}, when what it runs has ended"}


def _plain(standing: Standing) -> dict[str, Any]:
    values = {"leading": standing.leading, **dataclasses.asdict(standing)}
    del values["election"]
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}
