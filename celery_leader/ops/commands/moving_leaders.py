"""Shared by the commands that move leaders: names of nodes, and waiting for the next leader."""

from __future__ import annotations

import math
from collections.abc import Sequence

import click
from celery.utils.nodenames import default_nodename, host_format

from celery_leader.errors import LeaderError
from celery_leader.ops.overview import Overview
from celery_leader.ops.words import some
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import now
from celery_leader.runtime.orders import Handover

from .base import Call, elections_named, overviews_of

_TIMEOUT = 30.0  # seconds


def _no_nan(ctx: click.Context, option: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("it must be a number of seconds")
    return value


timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    callback=_no_nan,
    default=_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it is done. The order stands after that, too.",
)


now_option = click.option(
    "--now",
    "at_once",
    is_flag=True,
    help='Abort the bodies of tasks with on_deposed="abort", and do not wait for them.',
)


def look_at(runtime: AppRuntime, election: str | None) -> list[Overview]:
    """The overview of this election, or of all of them."""
    with runtime.redis.session() as session:
        return overviews_of(runtime, session, elections_named(runtime, election))


def full_name(node: str, overviews: Sequence[Overview]) -> str:
    """The full name of ``node``; its host or process id may be missing if only one node fits."""
    exact = str(host_format(default_nodename(node)))
    known = {n for each in overviews for n in (*each.held, *(c.node for c in each.candidates))}
    if exact in known:
        return exact
    short = f"{node}@" if "@" not in node else f"{exact}:"
    found = sorted(each for each in known if each.startswith(short))
    if len(found) > 1:
        raise LeaderError(f"{node} may be any of {', '.join(found)}: name one")
    return found[0] if found else exact


def no_candidate(node: str, overviews: Sequence[Overview]) -> str:
    """A sentence for a ``node`` that is no candidate."""
    known = {each.node for overview in overviews for each in overview.candidates}
    return f"there is no candidate {node!r}; known are {some(known, most=12) or 'none'}"


def hand_over(
    call: Call,
    runtime: AppRuntime,
    election: str,
    successor: str | None,
    timeout: float,
    at_once: bool,
) -> bool:
    """Give the order, wait, and print the outcome; whether it was done."""
    began = now()
    done = runtime.orders.hand_over(election, successor, timeout=timeout, at_once=at_once)
    return tell(call, done, successor, now() - began)


def tell(call: Call, done: Handover, successor: str | None, took: float) -> bool:
    """Print the outcome of an order; whether it was done."""
    achieved = done.leader is not None and successor in (None, done.leader)
    value = {
        "election": done.election,
        "former": done.former,
        "former_term": done.former_term,
        "leader": done.leader,
        "term": done.term,
        "seconds": round(took, 3),
        "done": achieved,
    }
    call.answer(value, *_lines(done, successor, took, achieved))
    return achieved


def _lines(done: Handover, successor: str | None, took: float, achieved: bool) -> list[str]:
    if done.leader is None:
        return [
            f"{done.election}: {done.former} has the order, and nobody leads anew after"
            f" {took:.1f} s. It steps down when what it runs has ended, or stops answering: see"
            f" celery leader status --election {done.election}"
        ]
    how = f", term {done.term}, after {took:.2f} s"
    if done.term == done.former_term:
        how = f" already, term {done.term}"
    elif done.leader == done.former:
        how = f" again: there was no other candidate{how}"
    lines = [f"{done.election}: {done.leader} leads{how}"]
    if not achieved:
        lines.append(f"{successor} did not take the lease in time, so another node got it")
    return lines
