"""``celery leader doctor``: what is wrong, and what to change."""

from __future__ import annotations

from dataclasses import asdict

import click

from celery_leader.ops.doctor import Fleet, examine, findings_table
from celery_leader.ops.findings import CRITICAL, SEVERITIES
from celery_leader.ops.probe import probe
from celery_leader.runtime.schedulers import unread
from celery_leader.tasks.routing import installed

from .base import Call, command, elections_named, overviews_of


@command
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES),
    default=CRITICAL,
    show_default=True,
    help="The exit code is 1 if there is a finding of this severity or a worse one.",
)
def doctor(call: Call, fail_on: str) -> bool:
    """Find what is wrong with the elections and their Redis, and say what to change.

    Writes nothing. The exit code is 1 if there is a critical finding; see --fail-on.
    """
    runtime = call.runtime()
    names = elections_named(runtime, None)
    # With leader_url the messages are in another Redis.
    queue = runtime.app.conf.task_default_queue if runtime.redis.is_broker else None
    with runtime.redis.session() as session:
        server = probe(session, names, queue)
        overviews = overviews_of(runtime, session, names)
    fleet = Fleet(
        installed=installed(runtime.app),
        settings=runtime.settings,
        overviews=overviews,
        needed=frozenset(runtime.task_elections),
        unread=unread(runtime.app) or "",
    )
    findings = examine(server, fleet)
    well = not any(each.is_at_least(fail_on) for each in findings)
    call.answer(
        {"well": well, "redis": server.as_json(), "findings": list(map(asdict, findings))},
        findings_table(server, findings),
    )
    return well
