"""What all commands of ``celery leader`` have in common.

Exit codes are 0 for yes or done, 1 for no or not done, and 2 where that cannot be told:
Redis does not answer, a setting or a name is wrong. Then there is one line on standard
error, and nothing else.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from celery import Celery, _state
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_leader.errors import LeaderError
from celery_leader.runtime.leadership import Leadership, app_identity, leadership_of
from celery_leader.store.lease_store import RedisLeaseStore
from celery_leader.tasks.leader_only import adopt_tasks

from .overview import Overview

#: The exit codes; 0 is yes.
NO, ERROR = 1, 2

_PATIENCE = 5.0  # seconds that Redis may take over one answer to a person

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
election_option = click.option("--election", metavar="NAME", help="This election only.")


def command(function: Callable[..., None]) -> click.Command:
    """A command that has the app in its context."""
    handle: Callable[..., Any] = handle_preload_options
    handler: Any = click.pass_context(handle(function))
    kind: type[click.Command] = CeleryCommand
    return click.command(cls=kind)(handler)


@contextmanager
def refusing(ctx: click.Context) -> Iterator[None]:
    """End with one line and an exit code where there is an error."""
    try:
        yield
    except LeaderError as exc:
        click.echo(f"Error: {exc}", err=True)
        ctx.exit(ERROR)


def elections_of(app: Celery, *, patient: float | None = _PATIENCE) -> Leadership:
    """The elections of ``app``, with those that its tasks name.

    Raises:
        LeaderError: a setting cannot be used, or there is nothing to read in any Redis.
    """
    # Without -A there is an app all the same, of no broker unless celeryconfig.py names one.
    if app is _state.default_app and not app.conf.broker_url:
        raise LeaderError("no app is named: put it first, as in celery -A proj leader status")
    app.finalize()
    app.loader.import_default_modules()
    adopt_tasks(app)
    leadership = leadership_of(app)
    if leadership.always_leads():
        raise LeaderError(
            "this app runs in one process (eager mode, or a broker in memory):"
            " it always leads, and there is no status to read"
        )
    if patient is not None:
        leadership.visit_timeout = max(patient, leadership.settings.timing.operation_timeout)
    return leadership


def print_json(value: Any) -> None:
    """Print ``value`` for scripts."""
    click.echo(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON, which has no infinity: what is no finite number becomes null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def named(leadership: Leadership, election: str | None) -> list[str]:
    """The elections that were asked for.

    Raises:
        LeaderError: there is none of that name.
    """
    names = sorted(leadership.elections())
    if election is None:
        return names
    if election not in names:
        raise LeaderError(f"there is no election {election!r}; known are {', '.join(names)}")
    return [election]


def overviews_of(
    leadership: Leadership, store: RedisLeaseStore, names: Sequence[str]
) -> list[Overview]:
    """The elections of these names, in one round trip.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    timing, app = leadership.settings.timing, app_identity(leadership.app)
    return [
        Overview(
            name, survey.record, survey.candidates, survey.held, timing, survey.leaderships, app
        )
        for name, survey in store.survey(names, 2).items()
    ]


def wall_clock() -> float:
    """Seconds since 1970, to be shown beside what Redis tells."""
    return datetime.datetime.now(datetime.timezone.utc).timestamp()
