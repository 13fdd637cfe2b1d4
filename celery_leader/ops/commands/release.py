"""``celery leader release``: a held node can be elected again."""

from __future__ import annotations

import click

from .base import Call, command
from .moving_leaders import full_name, look_at


@command
@click.argument("node")
@click.option(
    "--election", metavar="NAME", help="Which one.  [default: those that NODE is held in]"
)
def release(call: Call, node: str, election: str | None) -> bool:
    """Let NODE be elected again after a hold. The exit code is 1 if it was not held."""
    runtime = call.runtime()
    overviews = look_at(runtime, election)
    held = full_name(node, overviews)
    names = [each.election for each in overviews]
    freed = sorted(name for name, was_held in runtime.orders.free(held, names).items() if was_held)
    others = sorted({each for overview in overviews for each in overview.held})
    call.answer(
        {"node": held, "released_in": freed},
        f"{held} is released in {', '.join(freed)}"
        if freed
        else f"{held} was not held; held are: {', '.join(others) or 'none'}",
    )
    return bool(freed)
