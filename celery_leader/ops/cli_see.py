"""``celery leader status``, ``history`` and ``watch``: see the elections."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import click

from celery_leader.runtime.leadership import Leadership, Visit, app_identity
from celery_leader.runtime.settings import BEAT
from celery_leader.store.schedule_store import ScheduleStore
from celery_leader.tasks.leader_only import installed

from .cli_base import (
    NO,
    command,
    election_option,
    elections_of,
    json_option,
    json_text,
    named,
    overviews_of,
    print_json,
    refusing,
    wall_clock,
)
from .overview import Overview, history_sheet, past_as_json
from .table import at_a_terminal, live, show
from .watch import LEADERSHIPS, Diary, Look, Picture, Stream, looks


@command
@json_option
@election_option
def status(ctx: click.Context, as_json: bool, election: str | None) -> None:
    """Print every election, its leader, term, time left and candidates.

    The exit code is 0 when each election that has candidates is led, 1 when one is
    not or there is none, and 2 on an error.
    """
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        names = named(leadership, election)
        with leadership.visit_server() as visit:
            overviews = overviews_of(leadership, visit.store, names)
    if as_json:
        print_json({"elections": [each.as_json() for each in overviews]})
    else:
        show([each.sheet() for each in overviews], color=not ctx.obj.no_color)
        _hint(leadership, visit.address, overviews)
    contested = [each for each in overviews if election or each.contested]
    led = contested and all(each.led for each in contested)
    ctx.exit(0 if led else NO)


@command
@json_option
@election_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="The latest so many of each election.",
)
def history(ctx: click.Context, as_json: bool, election: str | None, limit: int) -> None:
    """Print who led each election, from when, until when, and why no longer.

    leader_history_size is how many lines are kept; a leadership takes two or three.
    """
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        names = named(leadership, election)
        with leadership.visit() as store:
            surveys = store.survey(names, limit)
    if as_json:
        print_json(
            {name: [past_as_json(each) for each in surveys[name].leaderships] for name in names}
        )
        return
    sheets = [history_sheet(name, surveys[name].leaderships) for name in names]
    show(sheets, color=not ctx.obj.no_color)


@command
@json_option
@election_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="From one look to the next.",
)
def watch(ctx: click.Context, as_json: bool, election: str | None, interval: float) -> None:
    """Show elections as they go on, until Ctrl-C.

    At a terminal it is one picture; in a pipe one line for each change; with --json
    one JSON object a line for each look.
    """
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        names = named(leadership, election)
        pause = threading.Event()
        with suppress(KeyboardInterrupt), leadership.visit_server() as visit:
            seen = looks(
                lambda: _look(leadership, visit, names), lambda: pause.wait(interval), wall_clock
            )
            _follow(ctx, seen, as_json)


def _follow(ctx: click.Context, seen: Iterator[Look | tuple[float, str]], as_json: bool) -> None:
    if as_json:
        stream = Stream()
        for each in seen:
            value = stream.seen(each) if isinstance(each, Look) else stream.unanswered(*each)
            click.echo(json_text(value))
        return
    if not at_a_terminal():
        diary = Diary()
        for each in seen:
            lines = diary.seen(each) if isinstance(each, Look) else diary.unanswered(*each)
            for line in lines:
                click.echo(line)
        return
    picture = Picture()
    first = next(seen)  # before the screen is taken: its error stays to be read
    with live(color=not ctx.obj.no_color) as draw:
        draw(picture.seen(first) if isinstance(first, Look) else [])
        for each in seen:
            draw(picture.seen(each) if isinstance(each, Look) else picture.unanswered(each[1]))


def _look(leadership: Leadership, visit: Visit, names: Sequence[str]) -> Look:
    surveys = visit.store.survey(names, LEADERSHIPS)
    dispatched = None
    if BEAT in names:
        dispatched = ScheduleStore(visit.client.run, visit.keys, BEAT).dispatched()
    timing, app = leadership.settings.timing, app_identity(leadership.app)
    return Look(
        wall_clock(),
        [
            Overview(name, s.record, s.candidates, s.held, timing, app=app)
            for name, s in surveys.items()
        ],
        {name: s.leaderships for name, s in surveys.items()},
        dispatched,
    )


def _hint(leadership: Leadership, address: str, overviews: Iterable[Overview]) -> None:
    """What a person should know who sees nothing and expects something."""
    if not installed(leadership.app):
        hint = "install(app) was not called on this app, so its workers elect nobody"
    elif not any(each.contested for each in overviews):
        hint = (
            f"nobody has taken part in namespace {leadership.settings.namespace!r} of {address};"
            " is this the app (-A), and this the broker, of your workers?"
        )
    else:
        return
    click.echo(f"Hint: {hint}", err=True)
