"""``celery leader history``: the past leaderships of all elections."""

from __future__ import annotations

import click

from celery_leader.ops.leaderships import history_as_json, history_table
from celery_leader.store.survey import survey

from .base import Call, command, election_option, elections_named


@command
@election_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="How many leaderships of each election to show, the latest first.",
)
def history(call: Call, election: str | None, limit: int) -> bool:
    """Show who led each election, from when, until when, and why it ended.

    Redis keeps leader_history_size lines of each election; a leadership takes two or three.
    """
    runtime = call.runtime()
    names = elections_named(runtime, election)
    with runtime.redis.session() as session:
        leaderships = {
            name: each.leaderships for name, each in survey(session.store, names, limit).items()
        }
    call.answer(
        {name: history_as_json(each) for name, each in leaderships.items()},
        *(history_table(name, each) for name, each in leaderships.items()),
    )
    return True
