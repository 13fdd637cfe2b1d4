"""``celery leader transfer``: the leader gives its lease to one node."""

from __future__ import annotations

import click

from celery_leader.errors import LeaderError
from celery_leader.runtime.orders import Handover

from .base import Call, command
from .moving_leaders import (
    full_name,
    hand_over,
    look_at,
    no_candidate,
    now_option,
    tell,
    timeout_option,
)


@command
@click.argument("node")
@click.option(
    "--election", metavar="NAME", help="Which one.  [default: the one that NODE takes part in]"
)
@now_option
@timeout_option
def transfer(call: Call, node: str, election: str | None, at_once: bool, timeout: float) -> bool:
    """Have the leader give its lease to NODE.

    The leader first ends what it is doing: a worker its leader-only tasks, a beat its
    dispatch. The exit code is 1 if NODE did not lead in time. It is 0 if NODE led already.
    """
    runtime = call.runtime()
    overviews = look_at(runtime, election)
    successor = full_name(node, overviews)
    found = [each for each in overviews if each.has(successor)]
    if not found:
        raise LeaderError(no_candidate(node, overviews))
    if len(found) > 1:
        names = ", ".join(each.election for each in found)
        raise LeaderError(f"{successor} takes part in {names}: name one with --election")
    name, led = found[0].election, found[0].led
    if led is not None and led.holder == successor:
        # A script may say it twice.
        already = Handover(name, successor, led.term, successor, led.term)
        return tell(call, already, successor, 0.0)
    return hand_over(call, runtime, name, successor, timeout, at_once)
