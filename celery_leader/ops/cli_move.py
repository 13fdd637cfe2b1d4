"""``celery leader resign``, ``transfer``, ``hold``, ``release`` and ``forget``: move the lead."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import click
from celery.utils.nodenames import default_nodename, host_format

from celery_leader.core.names import check_name
from celery_leader.errors import LeaderError
from celery_leader.runtime.clock import now
from celery_leader.runtime.leadership import Handover, Leadership

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
from .overview import Overview, some

_HANDOVER = 30.0  # seconds to wait for who comes next
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _number(ctx: click.Context, option: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("it must be a number of seconds")
    return value


_within = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    callback=_number,
    default=_HANDOVER,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until that is done; the order stands all the same.",
)


@command
@json_option
@click.option("--election", metavar="NAME", help="Which one.  [default: the one that is led]")
@_within
def resign(ctx: click.Context, as_json: bool, election: str | None, timeout: float) -> None:
    """Have the leader give its lease up to whoever comes next.

    It does so when what it does has come to an end: a worker's leader-only bodies, the
    dispatch of a beat. Where there is no other candidate the same node leads again. The
    exit code is 1 when nobody led anew in time; the order stands.
    """
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        name = _one_led(leadership, election)
        _hand_over(ctx, leadership, name, None, timeout, as_json)


@command
@click.argument("node")
@json_option
@click.option(
    "--election", metavar="NAME", help="Which one.  [default: the one that NODE takes part in]"
)
@_within
def transfer(
    ctx: click.Context, node: str, as_json: bool, election: str | None, timeout: float
) -> None:
    """Have the leader give its lease to NODE.

    It does so when what it does has come to an end: a worker's leader-only bodies, the
    dispatch of a beat. The exit code is 1 when NODE did not lead in time, and 0 also when
    it led before.
    """
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        overviews = _look_at(leadership, election)
        successor = _known_node(node, overviews)
        taking_part = [each.election for each in overviews if _has(each, successor)]
        if not taking_part:
            raise LeaderError(_unknown_node(node, overviews))
        if len(taking_part) > 1:
            raise LeaderError(
                f"{successor} takes part in {', '.join(taking_part)}: name one with --election"
            )
        (election,) = taking_part
        leader = next(each.led for each in overviews if each.election == election)
        if leader is not None and leader.holder == successor:
            # Nothing to do is done: a script may say it twice.
            already = Handover(election, successor, leader.term, successor, leader.term)
            _tell(ctx, already, successor, 0.0, as_json)
            return
        _hand_over(ctx, leadership, election, successor, timeout, as_json)


def _hand_over(
    ctx: click.Context,
    leadership: Leadership,
    election: str,
    successor: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    began = now()
    done = leadership.hand_over(election, successor, timeout=timeout)
    _tell(ctx, done, successor, now() - began, as_json)


def _tell(
    ctx: click.Context, done: Handover, successor: str | None, took: float, as_json: bool
) -> None:
    election = done.election
    achieved = done.leader is not None and successor in (None, done.leader)
    if as_json:
        print_json(
            {
                "election": election,
                "former": done.former,
                "former_term": done.former_term,
                "leader": done.leader,
                "term": done.term,
                "seconds": round(took, 3),
                "done": achieved,
            }
        )
    elif done.leader is None:
        click.echo(
            f"{election}: {done.former} was told, and nobody leads anew after {took:.1f} s."
            " It gives way when what it runs has ended, or stops answering: see"
            f" celery leader status --election {election}"
        )
    else:
        how = f", term {done.term}, after {took:.2f} s"
        if done.term == done.former_term:
            how = f" already, term {done.term}"
        elif done.leader == done.former:
            how = f" again: there was no other candidate{how}"
        click.echo(f"{election}: {done.leader} leads{how}")
        if not achieved:
            click.echo(f"{successor} did not take the lease in its time, so it went on")
    ctx.exit(0 if achieved else NO)


@command
@click.argument("node")
@json_option
@click.option(
    "--election",
    metavar="NAME",
    help="Which one.  [default: those that NODE takes part in]",
)
@click.option(
    "--for",
    "duration",
    metavar="TIME",
    help="Let it in again after that: 90, 90s, 10m, 2h.  [default: at release]",
)
@_within
def hold(
    ctx: click.Context,
    node: str,
    as_json: bool,
    election: str | None,
    duration: str | None,
    timeout: float,
) -> None:
    """Keep NODE out of the race, as for a deployment, until it is released.

    If it leads it gives way, and this command waits for that; the exit code is 1 when it
    still led after --timeout. A node that is not there yet can be held in an --election.
    """
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        seconds = _seconds(duration)
        overviews = _look_at(leadership, election)
        held = _known_node(node, overviews)
        names = [each.election for each in overviews if _has(each, held) or election]
        if not names:
            raise LeaderError(
                f"{_unknown_node(node, overviews)}. To hold one that is not there yet, name an"
                " --election"
            )
        leadership.hold(held, names, seconds)
        leading = _wait_until_not_leading(leadership, held, names, timeout)
    if as_json:
        print_json(
            {"node": held, "held_in": names, "seconds": seconds, "still_leads": sorted(leading)}
        )
    else:
        until = f"for {seconds:g} s" if seconds else f"until `celery leader release {held}`"
        click.echo(f"{held} is held in {', '.join(names)}, {until}")
        for name in sorted(leading):
            click.echo(f"{name}: it still leads, and gives way when what it runs has ended")
    ctx.exit(NO if leading else 0)


@command
@click.argument("node")
@json_option
@click.option(
    "--election", metavar="NAME", help="Which one.  [default: those that NODE is held in]"
)
def release(ctx: click.Context, node: str, as_json: bool, election: str | None) -> None:
    """Let NODE into the race again; the exit code is 1 when it was not held."""
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        overviews = _look_at(leadership, election)
        held = _known_node(node, overviews)
        names = [each.election for each in overviews]
        freed = [name for name, was_held in leadership.free(held, names).items() if was_held]
    if as_json:
        print_json({"node": held, "released_in": sorted(freed)})
    elif freed:
        click.echo(f"{held} is released in {', '.join(sorted(freed))}")
    else:
        others = sorted({node for each in overviews for node in each.held})
        click.echo(f"{held} was not held; held are: {', '.join(others) or 'none'}")
    ctx.exit(0 if freed else NO)


@command
@click.argument("elections", nargs=-1, required=True, metavar="NAME...")
@json_option
def forget(ctx: click.Context, elections: tuple[str, ...], as_json: bool) -> None:
    """Remove what Redis keeps of elections that nobody needs any more.

    Record and history go; an election in which somebody takes part is refused. The exit code
    is 1 when there was nothing of one of them.
    """
    with refusing(ctx):
        leadership = elections_of(ctx.obj.app)
        names = [check_name(name) for name in elections]
        found = {name: leadership.forget(name) for name in names}
    if as_json:
        print_json({"forgotten": sorted(name for name, there in found.items() if there)})
    else:
        for name, there in found.items():
            click.echo(f"{name} is forgotten" if there else f"{name} was not known to Redis")
    ctx.exit(0 if all(found.values()) else NO)


def _look_at(leadership: Leadership, election: str | None) -> list[Overview]:
    with leadership.visit() as store:
        return overviews_of(leadership, store, named(leadership, election))


def _one_led(leadership: Leadership, election: str | None) -> str:
    """The election whose leader is meant.

    Raises:
        LeaderError: it is not the only one that is led, or there is none.
    """
    if election is not None:
        return named(leadership, election)[0]
    led = [each.election for each in _look_at(leadership, None) if each.led]
    if not led:
        raise LeaderError("nobody leads any election, so there is nobody to give way")
    if len(led) > 1:
        raise LeaderError(f"{', '.join(led)} are led: name one with --election")
    return led[0]


def _known_node(node: str, overviews: Sequence[Overview]) -> str:
    """The full name of ``node``: its host, and a beat's process id, may be left out.

    Raises:
        LeaderError: several go by that name.
    """
    exact = str(host_format(default_nodename(node)))
    known = {n for each in overviews for n in (*each.held, *(c.node for c in each.candidates))}
    if exact in known:
        return exact
    short = f"{node}@" if "@" not in node else f"{exact}:"
    found = sorted(each for each in known if each.startswith(short))
    if len(found) > 1:
        raise LeaderError(f"{node} may be any of {', '.join(found)}: name one")
    return found[0] if found else exact


def _has(overview: Overview, node: str) -> bool:
    return any(each.node == node for each in overview.candidates)


def _unknown_node(node: str, overviews: Sequence[Overview]) -> str:
    known = {each.node for overview in overviews for each in overview.candidates}
    return f"there is no candidate {node!r}; known are {some(known, most=12) or 'none'}"


def _wait_until_not_leading(
    leadership: Leadership, node: str, elections: Sequence[str], timeout: float
) -> set[str]:
    """The elections that ``node`` still leads when all is done, or the time is up."""
    deadline, pause = now() + timeout, threading.Event()
    with leadership.visit() as store:
        while True:
            overviews = overviews_of(leadership, store, elections)
            leading = {o.election for o in overviews if o.led and o.led.holder == node}
            if not leading or now() >= deadline:
                return leading
            pause.wait(0.1)


def _seconds(text: str | None) -> float | None:
    """A length of time, as people write it."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        raise LeaderError(f"--for is {text!r}: it must be like 90, 90s, 10m, 2h or 1d") from None
