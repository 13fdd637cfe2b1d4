"""``celery -A proj leader …``: who leads and who is well, for people and for scripts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click
from celery import Celery
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.utils.nodenames import default_nodename, host_format
from kombu.exceptions import OperationalError

from . import control
from .app import Leadership, leadership_of
from .errors import LeaderError, StoreUnavailable
from .health import Finding, Wanted, examine, last_contacts, patience, process_runs
from .lease import Candidate, Record
from .redis_store import RedisStore
from .tasks import adopt_tasks

# Celery's command line imports this module, and must know what nodes can be asked.
control.register()

_NO_LEADER = 1
_UNWELL = 1
_ERROR = 2
_ANSWER = 0.8  # seconds that a worker may take over one question by remote control


@click.group(name="leader")
def leader() -> None:
    """Leader elections of the app's workers and beats."""


def _leadership(app: Celery) -> Leadership:
    """The elections of ``app``, with those that its tasks name.

    Raises:
        LeaderError: a setting cannot be used, or there is nothing to read in any Redis.
    """
    app.finalize()
    app.loader.import_default_modules()
    adopt_tasks(app)
    leadership = leadership_of(app)
    if leadership.always_leads():
        raise LeaderError(
            "this app runs in one process (eager mode, or a broker in memory):"
            " it always leads, and there is no status to read"
        )
    return leadership


@dataclass(frozen=True, slots=True)
class _Status:
    election: str
    record: Record | None
    candidates: list[Candidate]

    @property
    def led(self) -> Record | None:
        return self.record if self.record is not None and self.record.led else None

    def as_json(self) -> dict[str, Any]:
        led = self.led
        return {
            "election": self.election,
            "leader": led.holder if led else None,
            "term": led.term if led else None,
            "seconds_left": round(led.remaining, 3) if led else None,
            "transitions": self.record.transitions if self.record else 0,
            "candidates": [
                {"node": candidate.node, "seconds_since_seen": round(candidate.seen_ago, 3)}
                for candidate in self.candidates
            ],
        }

    def as_text(self) -> str:
        led = self.led
        who = f"{led.holder}  term {led.term}  {led.remaining:.1f} s left" if led else "no leader"
        lines = [f"{self.election}: {who}"]
        lines += [
            f"    {'*' if led and candidate.node == led.holder else ' '} {candidate.node}"
            f"  seen {candidate.seen_ago:.1f} s ago"
            for candidate in self.candidates
        ]
        return "\n".join(lines)


@leader.command(cls=CeleryCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--election", help="This election only.")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def status(ctx: click.Context, as_json: bool, election: str | None) -> None:
    """Print every election, its leader, term, time left and candidates.

    The exit code is 0 when each election that has candidates is led, 1 when one is
    not or there is none, and 2 on an error.
    """
    app = ctx.obj.app
    try:
        statuses = _statuses(_leadership(app), election)
    except LeaderError as exc:
        click.echo(f"Error: {exc}", err=True)
        ctx.exit(_ERROR)
    if as_json:
        click.echo(json.dumps({"elections": [each.as_json() for each in statuses]}, indent=2))
    else:
        click.echo("\n".join(each.as_text() for each in statuses))
    contested = [each for each in statuses if election or each.record or each.candidates]
    led = contested and all(each.led for each in contested)
    ctx.exit(0 if led else _NO_LEADER)


def _statuses(leadership: Leadership, election: str | None) -> list[_Status]:
    names = sorted(leadership.elections())
    if election is not None and election not in names:
        raise LeaderError(f"there is no election {election!r}; known are {', '.join(names)}")
    with leadership.visit() as store:
        return [
            _Status(name, store.read(name), store.candidates(name))
            for name in ([election] if election else names)
        ]


@leader.command(cls=CeleryCommand)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME@HOST",
    help="This node, with %h and the like as in celery worker -n; may be given again."
    "  [default: the nodes of this host]",
)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def healthcheck(ctx: click.Context, nodes: tuple[str, ...]) -> None:
    """Tell whether workers and beats of this host are in contact with Redis.

    The exit code is 0 when the election thread of each is, leading or not; 1 when one
    is not, or none can be found; and 2 on an error. A worker that takes part in no
    election is asked by remote control.
    """
    host = socket.gethostname()
    wanted = [Wanted(host, host_format(default_nodename(node))) for node in nodes]
    try:
        findings = _findings(_leadership(ctx.obj.app), wanted or [Wanted(host)])
    except StoreUnavailable as exc:
        click.echo(f"no contact with Redis: {exc}")
        ctx.exit(_UNWELL)
    except LeaderError as exc:
        click.echo(f"Error: {exc}", err=True)
        ctx.exit(_ERROR)
    for finding in findings:
        click.echo(f"{finding.node}: {finding.why}")
    ctx.exit(0 if all(finding.well for finding in findings) else _UNWELL)


def _findings(leadership: Leadership, wanted: list[Wanted]) -> list[Finding]:
    with leadership.visit() as store:
        return [finding for each in wanted for finding in _found(leadership, store, each)]


def _found(leadership: Leadership, store: RedisStore, wanted: Wanted) -> list[Finding]:
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
