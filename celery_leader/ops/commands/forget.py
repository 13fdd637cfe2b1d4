"""``celery leader forget``: remove an election from Redis."""

from __future__ import annotations

import click

from celery_leader.core.names import check_name

from .base import Call, command


@command
@click.argument("elections", nargs=-1, required=True, metavar="NAME...")
def forget(call: Call, elections: tuple[str, ...]) -> bool:
    """Remove from Redis what it keeps of elections that nobody needs any more.

    Record and history go. An election with candidates is refused. The exit code is 1 if
    Redis kept nothing of one of them.
    """
    runtime = call.runtime()
    names = [check_name(name) for name in elections]
    found = {name: runtime.participation.forget(name) for name in names}
    call.answer(
        {"forgotten": sorted(name for name, there in found.items() if there)},
        *(
            f"{name} is forgotten" if there else f"{name} was not known to Redis"
            for name, there in found.items()
        ),
    )
    return all(found.values())
