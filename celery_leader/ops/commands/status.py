"""``celery leader status``: the leaders and candidates of all elections, once or as they go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import click

from celery_leader.ops.election_table import election_table
from celery_leader.ops.overview import Overview
from celery_leader.ops.printing import say, say_json
from celery_leader.ops.table import at_a_terminal, live
from celery_leader.ops.watch import LEADERSHIPS, Diary, Look, looks
from celery_leader.runtime.app_runtime import AppRuntime
from celery_leader.runtime.clock import wall_clock
from celery_leader.runtime.session import RedisSession
from celery_leader.runtime.settings import BEAT
from celery_leader.store.schedule_store import ScheduleStore
from celery_leader.tasks.routing import installed

from .base import Call, command, election_option, elections_named, overviews_of


@command
@election_option
@click.option(
    "--watch",
    is_flag=True,
    help="Show them again and again until Ctrl-C: one picture at a terminal, a line for each"
    " change in a pipe, one JSON object a line with --json.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: the time from one look to the next.",
)
def status(call: Call, election: str | None, watch: bool, interval: float) -> bool:
    """Show each election with its leader, term, time left and candidates.

    The exit code is 0 if every election that has candidates is led. It is 1 if one is not
    led, or if nobody takes part in any.
    """
    runtime = call.runtime()
    names = elections_named(runtime, election)
    with runtime.redis.session() as session:
        if watch:
            _watch(call, lambda: _look(runtime, session, names), interval)
            return True
        overviews = overviews_of(runtime, session, names)
    call.answer(
        {"elections": [each.as_json() for each in overviews]}, *map(election_table, overviews)
    )
    if not call.as_json:
        _hint(runtime, session.address, overviews)
    contested = [each for each in overviews if election or each.contested]
    return bool(contested) and all(each.led for each in contested)


def _hint(runtime: AppRuntime, address: str, overviews: Sequence[Overview]) -> None:
    """Print why nobody may be leading: the app is not installed, or nobody takes part."""
    if not installed(runtime.app):
        hint = "install(app) was not called on this app, so its workers elect nobody"
    elif not any(each.contested for each in overviews):
        hint = (
            f"nobody has taken part in namespace {runtime.settings.namespace!r} of {address};"
            " is this the app (-A), and this the broker, of your workers?"
        )
    else:
        return
    say(f"Hint: {hint}", error=True)


def _watch(call: Call, look: Callable[[], Look], interval: float) -> None:
    pause = threading.Event()
    seen = looks(look, lambda: pause.wait(interval), wall_clock)
    with suppress(KeyboardInterrupt):
        if call.as_json:
            for each in seen:
                say_json(each.as_json())
        elif at_a_terminal():
            _draw(call, seen)
        else:
            diary = Diary()
            for each in seen:
                for line in diary.lines(each):
                    say(line)


def _draw(call: Call, seen: Iterator[Look]) -> None:
    # Before the terminal is taken, so that an error at the first look stays on the screen.
    first = next(seen)
    with live(color=call.color) as draw:
        draw(first.as_tables())
        for look in seen:
            draw(look.as_tables())


def _look(runtime: AppRuntime, session: RedisSession, names: Sequence[str]) -> Look:
    overviews = overviews_of(runtime, session, names, LEADERSHIPS)
    schedule = ScheduleStore(session.client.run, session.keys, BEAT)
    return Look(wall_clock(), overviews, schedule.dispatched() if BEAT in names else None)
