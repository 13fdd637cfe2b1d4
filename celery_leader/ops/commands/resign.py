"""``celery leader resign``: the leader gives its lease up."""

from __future__ import annotations

import click

from celery_leader.errors import LeaderError
from celery_leader.runtime.app_runtime import AppRuntime

from .base import Call, command, elections_named
from .moving_leaders import hand_over, look_at, now_option, timeout_option


@command
@click.option("--election", metavar="NAME", help="Which one.  [default: the one that is led]")
@now_option
@timeout_option
def resign(call: Call, election: str | None, at_once: bool, timeout: float) -> bool:
    """Have the leader give up its lease, so that another candidate leads.

    The leader first ends what it is doing: a worker its leader-only tasks, a beat its
    dispatch. If there is no other candidate, the same node leads again. The exit code is 1
    if there was no new leader in time; the order stands.
    """
    runtime = call.runtime()
    name = _only_led(runtime) if election is None else elections_named(runtime, election)[0]
    return hand_over(call, runtime, name, None, timeout, at_once)


def _only_led(runtime: AppRuntime) -> str:
    led = [each.election for each in look_at(runtime, None) if each.led]
    if not led:
        raise LeaderError("nobody leads any election, so nobody can step down")
    if len(led) > 1:
        raise LeaderError(f"{', '.join(led)} are led: name one with --election")
    return led[0]
