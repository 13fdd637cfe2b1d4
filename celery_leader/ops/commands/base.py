"""What all commands of ``celery leader`` share: the app, ``--json``, exit codes.

The exit code is 0 for yes or done and 1 for no or not done. It is 2 where that cannot be told:
Redis does not answer, or a setting or a name is wrong. Then there is one line on standard
error and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from celery import Celery
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_leader.compat.celery import is_default_app
from celery_leader.errors import LeaderError
from celery_leader.ops.overview import Overview
from celery_leader.ops.printing import say, say_json
from celery_leader.ops.table import Table, show
from celery_leader.runtime.app_runtime import AppRuntime, runtime_of
from celery_leader.runtime.apps import app_identity
from celery_leader.runtime.session import RedisSession
from celery_leader.store.survey import survey
from celery_leader.tasks.leader_only import adopt_tasks

_NO, _ERROR = 1, 2
_PATIENCE = 5.0  # seconds that Redis may take over one answer to a person

election_option = click.option("--election", metavar="NAME", help="Only this election.")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a command.

    Attributes:
        app: the app of ``celery -A``.
        as_json: whether ``--json`` was given.
        color: whether the output may have colours.
    """

    app: Celery
    as_json: bool
    color: bool

    def runtime(self, patience: float | None = _PATIENCE) -> AppRuntime:
        """The app's runtime, which knows the elections that its tasks name.

        ``patience``: how many seconds Redis may take over one answer. It never gets less than the
        operations of a lease get.

        Raises:
            LeaderError: no app is named, or the app always leads.
        """
        # Without -A Celery makes an app itself, whose broker only celeryconfig.py can name.
        if is_default_app(self.app) and not self.app.conf.broker_url:
            raise LeaderError("no app is named: put it first, as in celery -A proj leader status")
        self.app.finalize()
        self.app.loader.import_default_modules()
        adopt_tasks(self.app)
        runtime = runtime_of(self.app)
        if runtime.always_leads():
            raise LeaderError(
                "this app runs in one process (eager mode, or a broker in memory):"
                " it always leads, and there is no status to read"
            )
        if patience is not None:
            runtime.redis.session_timeout = max(patience, runtime.settings.timing.operation_timeout)
        return runtime

    def answer(self, value: Any, *told: Table | str) -> None:
        """Print ``value`` with ``--json``; without it, the lines and tables that tell the same."""
        if self.as_json:
            say_json(value, indent=2)
            return
        for each in told:
            if isinstance(each, Table):
                show([each], color=self.color)
            else:
                say(each)


def command(function: Callable[..., bool]) -> click.Command:
    """Make a command of ``function``, with ``--json`` and the exit codes.

    ``function`` gets the ``Call`` and the command's own options. It returns ``True`` for the
    exit code 0 and ``False`` for 1, and raises a ``LeaderError`` for 2.
    """

    @functools.wraps(function)
    def run(ctx: click.Context, *, as_json: bool, **options: Any) -> None:
        try:
            yes = function(Call(ctx.obj.app, as_json, color=not ctx.obj.no_color), **options)
        except LeaderError as exc:
            say(f"Error: {exc}", error=True)
            ctx.exit(_ERROR)
        ctx.exit(0 if yes else _NO)

    handle: Callable[..., Any] = handle_preload_options
    kind: type[click.Command] = CeleryCommand
    made = click.command(cls=kind)(click.pass_context(handle(run)))
    made.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."))
    return made


def elections_named(runtime: AppRuntime, election: str | None) -> list[str]:
    """``election``, or all elections if it is ``None``; an unknown one is an error."""
    names = sorted(runtime.elections())
    if election is None:
        return names
    if election not in names:
        raise LeaderError(f"there is no election {election!r}; known are {', '.join(names)}")
    return [election]


def overviews_of(
    runtime: AppRuntime, session: RedisSession, names: Sequence[str], leaderships: int = 2
) -> list[Overview]:
    """The elections of these names with their latest leaderships, in one round trip."""
    timing, app = runtime.settings.timing, app_identity(runtime.app)
    queues = runtime.redis.queue_keys(names, session.keys)
    return [
        Overview(
            name,
            each.record,
            each.candidates,
            each.held,
            timing,
            each.leaderships,
            app,
            each.queued,
        )
        for name, each in survey(session.store, names, leaderships, queues).items()
    ]
