"""``celery -A proj leader …``: who leads, for people and for scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from .app import Leadership, leadership_of
from .errors import LeaderError
from .lease import Candidate, Record
from .tasks import adopt_tasks

_NO_LEADER = 1
_ERROR = 2


@click.group(name="leader")
def leader() -> None:
    """Leader elections of the app's workers and beats."""


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
        app.finalize()
        app.loader.import_default_modules()
        adopt_tasks(app)
        statuses = _statuses(leadership_of(app), election)
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
    if leadership.always_leads():
        raise LeaderError(
            "this app runs in one process (eager mode, or a broker in memory):"
            " it always leads, and there is no status to read"
        )
    with leadership.visit() as store:
        return [
            _Status(name, store.read(name), store.candidates(name))
            for name in ([election] if election else names)
        ]
