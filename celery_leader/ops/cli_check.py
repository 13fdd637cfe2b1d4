"""``celery leader doctor`` and ``healthcheck``: trust the elections, or know why not."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Any

import click
from celery import Celery
from celery.utils.nodenames import default_nodename, host_format
from kombu.exceptions import OperationalError

from celery_leader.errors import StoreUnavailable
from celery_leader.runtime.clock import now
from celery_leader.runtime.leadership import Leadership, Visit, app_identity
from celery_leader.runtime.schedulers import unread
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.tasks.leader_only import installed

from . import doctor as clinic
from .cli_base import (
    NO,
    command,
    elections_of,
    json_option,
    named,
    overviews_of,
    print_json,
    refusing,
)
from .health import Finding, Wanted, examine, last_contacts, patience, process_runs
from .overview import Overview
from .probe import Probe
from .table import show

_ANSWER = 0.8  # seconds that a worker may take over one question by remote control


@command
@json_option
@click.option(
    "--fail-on",
    type=click.Choice([each.value for each in clinic.Severity]),
    default=clinic.Severity.CRITICAL.value,
    show_default=True,
    help="The exit code is 1 for findings of this severity or worse.",
)
def doctor(ctx: click.Context, as_json: bool, fail_on: str) -> None:
    """Look for what is wrong with the elections and their Redis, and say what to change.

    Writes nothing. The exit code is 0 without critical findings, 1 with one, and 2 when
    Redis does not answer or a setting cannot be used.
    """
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        names = named(leadership, None)
        # With leader_url the messages go elsewhere.
        queue = leadership.app.conf.task_default_queue if leadership.leases_on_broker else None
        with leadership.visit_server() as visit:
            server = _probe(visit).look(names, queue)
            overviews = overviews_of(leadership, visit.store, names)
    findings = clinic.examine(server, _fleet(leadership, overviews))
    worst = clinic.Severity(fail_on).rank
    bad = [each for each in findings if each.severity.rank <= worst]
    if as_json:
        print_json(
            {"well": not bad, **server.as_json(), "findings": [each.as_json() for each in findings]}
        )
    else:
        show([clinic.sheet(server, findings)], color=not ctx.obj.no_color)
    ctx.exit(NO if bad else 0)


def _probe(visit: Visit) -> Probe:
    return Probe(
        visit.client, address=visit.address, setting=visit.setting, keys=visit.keys, clock=now
    )


def _fleet(leadership: Leadership, overviews: Sequence[Overview]) -> clinic.Fleet:
    settings = leadership.settings
    return clinic.Fleet(
        app=app_identity(leadership.app),
        installed=installed(leadership.app),
        namespace=settings.namespace,
        queue=settings.queue,
        wait_replicas=settings.wait_replicas,
        timing=settings.timing,
        overviews=overviews,
        needed=frozenset(leadership.task_elections),
        unread=unread(leadership.app) or "",
    )


@command
@json_option
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME@HOST",
    help="This node, with %h and the like as in celery worker -n; may be given again."
    "  [default: the nodes of this host]",
)
def healthcheck(ctx: click.Context, as_json: bool, nodes: tuple[str, ...]) -> None:
    """Tell whether workers and beats of this host are in contact with Redis.

    The exit code is 0 when the election thread of each is, leading or not; 1 when one
    is not, or none can be found; and 2 on an error. A worker that takes part in no
    election is asked by remote control.
    """
    host = socket.gethostname()
    wanted = [Wanted(host, host_format(default_nodename(node))) for node in nodes]
    findings: list[Finding] = []
    why = None
    with refusing(ctx):
        # Whoever asks does so every few seconds, and wants to hear of a slow Redis.
        leadership = elections_of(ctx.obj.app, patient=None)
        try:
            findings = _findings(leadership, wanted or [Wanted(host)])
        except StoreUnavailable as exc:
            why = f"no contact with Redis: {exc}"
    well = why is None and all(finding.well for finding in findings)
    if as_json:
        told = [{"node": f.node, "well": f.well, "why": f.why} for f in findings]
        print_json({"well": well, "why": why, "nodes": told})
    else:
        for line in [why] if why else [f"{f.node}: {f.why}" for f in findings]:
            click.echo(line)
    ctx.exit(0 if well else NO)


def _findings(leadership: Leadership, wanted: list[Wanted]) -> list[Finding]:
    with leadership.visit() as store:
        return [finding for each in wanted for finding in _found(leadership, store, each)]


def _found(leadership: Leadership, store: RedisLeaseStore, wanted: Wanted) -> list[Finding]:
    timing = leadership.settings.timing

    def examined(elections: Iterable[str]) -> list[Finding]:
        seen = last_contacts(each for name in elections for each in store.candidates(name))
        return examine(wanted, seen, patience=patience(timing), runs=process_runs)

    found = examined(leadership.elections())
    if found:
        return found
    unknown = Finding(
        str(wanted), False, f"not heard of by Redis in the last {3 * timing.lease_duration:g} s"
    )
    answer = _answer_of_worker(leadership.app, wanted)
    if answer is None:
        return [unknown]
    node, elections = answer
    if not elections:
        return [Finding(node, True, "answers, and takes part in no election")]
    # Those of its --elections that this command, which was not given them, knows nothing of.
    return examined(elections) or [unknown]


def _answer_of_worker(app: Celery, wanted: Wanted) -> tuple[str, list[str]] | None:
    """The node of a worker that answers by remote control, and its elections."""
    who: dict[str, Any] = (
        {"pattern": f"*@{wanted.host}", "matcher": "glob"}
        if wanted.node is None
        else {"destination": [wanted.node]}
    )
    try:
        replies = app.control.inspect(timeout=_ANSWER, limit=1, **who).stats() or {}
    except OperationalError:
        return None
    for node, stats in replies.items():
        if "leader" in stats:
            return node, list(stats["leader"])
    return None
