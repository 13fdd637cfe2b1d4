"""``celery leader healthcheck``: whether the nodes of this host are well."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
from celery import Celery
from celery.utils.nodenames import default_nodename, host_format
from kombu.exceptions import OperationalError

from celery_leader.errors import StoreUnavailable
from celery_leader.ops.health import (
    NodeHealth,
    Wanted,
    health_of,
    last_contacts,
    patience,
    process_runs,
)
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.store.lease_store import RedisLeaseStore

from .base import Call, command

_ANSWER = 0.8  # seconds that a worker may take over one question by remote control


@command
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME@HOST",
    help="This node, with %h and the like as in celery worker -n. May be given again."
    "  [default: all nodes of this host]",
)
def healthcheck(call: Call, nodes: tuple[str, ...]) -> bool:
    """Tell whether the workers and beats of this host are in contact with Redis.

    The exit code is 0 if the election thread of each one is, leading or not. It is 1 if one
    is not, or if none is found. A worker that takes part in no election is asked by remote
    control.
    """
    host = socket.gethostname()
    named = [Wanted(host, host_format(default_nodename(node))) for node in nodes]
    # Containers are checked every few seconds, and a slow Redis is to be reported.
    runtime = call.runtime(patience=None)
    why, found = None, []
    try:
        with runtime.redis.session() as session:
            for wanted in named or [Wanted(host)]:
                found += _health_of(runtime, session.store, wanted)
    except StoreUnavailable as exc:
        why, found = f"no contact with Redis: {exc}", []
    well = why is None and all(each.well for each in found)
    call.answer(
        {"well": well, "why": why, "nodes": [asdict(each) for each in found]},
        *([why] if why else [f"{each.node}: {each.why}" for each in found]),
    )
    return well


def _health_of(runtime: AppRuntime, store: RedisLeaseStore, wanted: Wanted) -> list[NodeHealth]:
    timing = runtime.settings.timing

    def in_elections(elections: Iterable[str]) -> list[NodeHealth]:
        seen = last_contacts(each for name in elections for each in store.register.candidates(name))
        return health_of(wanted, seen, patience=patience(timing), runs=process_runs)

    found = in_elections(runtime.elections())
    if found:
        return found
    unknown = NodeHealth(
        str(wanted), False, f"no contact with Redis in the last {3 * timing.lease_duration:g} s"
    )
    answer = _answer_of_worker(runtime.app, wanted)
    if answer is None:
        return [unknown]
    node, elections = answer
    if not elections:
        return [NodeHealth(node, True, "answers, and takes part in no election")]
    # The worker may have --elections that this command was not given.
    return in_elections(elections) or [unknown]


def _answer_of_worker(app: Celery, wanted: Wanted) -> tuple[str, list[str]] | None:
    """The node of a worker that answers by remote control, and its elections."""
    asked: dict[str, Any] = (
        {"pattern": f"*@{wanted.host}", "matcher": "glob"}
        if wanted.node is None
        else {"destination": [wanted.node]}
    )
    try:
        replies = app.control.inspect(timeout=_ANSWER, limit=1, **asked).stats() or {}
    except OperationalError:
        return None
    for node, stats in replies.items():
        if "leader" in stats:
            return node, list(stats["leader"])
    return None
