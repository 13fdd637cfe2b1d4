"""``celery leader hold``: keep a node from being elected."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import click

from celery_leader.errors import LeaderError
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import now

from .base import Call, command, overviews_of
from .moving_leaders import full_name, look_at, no_candidate, now_option, timeout_option

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PAUSE = 0.1  # seconds between two looks


@command
@click.argument("node")
@click.option(
    "--election", metavar="NAME", help="Which one.  [default: those that NODE takes part in]"
)
@click.option(
    "--for",
    "duration",
    metavar="TIME",
    help="Release NODE after that time: 90, 90s, 10m, 2h, 1d.  [default: never]",
)
@now_option
@timeout_option
def hold(
    call: Call,
    node: str,
    election: str | None,
    duration: str | None,
    at_once: bool,
    timeout: float,
) -> bool:
    """Keep NODE from being elected, as for a deployment, until it is released.

    If NODE leads, it steps down, and this command waits for that. The exit code is 1 if NODE
    still leads after --timeout. To hold a node that is not there yet, name an --election.
    """
    runtime = call.runtime()
    seconds = _seconds(duration)
    overviews = look_at(runtime, election)
    held = full_name(node, overviews)
    names = [each.election for each in overviews if election or each.has(held)]
    if not names:
        raise LeaderError(
            f"{no_candidate(node, overviews)}. To hold one that is not there yet, name an"
            " --election"
        )
    runtime.orders.hold(held, names, seconds, at_once=at_once)
    leading = _wait_until_not_leading(runtime, held, names, timeout)
    until = f"for {seconds:g} s" if seconds else f"until `celery leader release {held}`"
    call.answer(
        {"node": held, "held_in": names, "seconds": seconds, "still_leads": leading},
        f"{held} is held in {', '.join(names)}, {until}",
        *(
            f"{name}: it still leads, and steps down when what it runs has ended"
            for name in leading
        ),
    )
    return not leading


def _wait_until_not_leading(
    runtime: AppRuntime, node: str, elections: Sequence[str], timeout: float
) -> list[str]:
    """Wait until ``node`` leads none of ``elections``; those that it leads after ``timeout``."""
    deadline, pause = now() + timeout, threading.Event()
    with runtime.redis.session() as session:
        while True:
            overviews = overviews_of(runtime, session, elections)
            leading = sorted(o.election for o in overviews if o.led and o.led.holder == node)
            if not leading or now() >= deadline:
                return leading
            pause.wait(_PAUSE)


def _seconds(text: str | None) -> float | None:
    """A length of time as people write it."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        raise LeaderError(f"--for is {text!r}: it must be like 90, 90s, 10m, 2h or 1d") from None
