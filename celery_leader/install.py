"""``install(app)``: the one place where this package is tied to a Celery app."""

from __future__ import annotations

import signal
from typing import Any

import click
from celery import Celery, signals

from .beat.elected import ElectedScheduler
from .compat.celery import route_anew, set_class, worker_pid
from .errors import LeaderError
from .runtime.app_runtime import AppRuntime, runtime_of
from .runtime.apps import celery_app
from .runtime.local_candidate import LocalCandidate
from .runtime.log import get_logger
from .runtime.schedulers import check_scheduler, told_of
from .runtime.settings import BEAT
from .tasks.leader_only import adopt_tasks
from .tasks.routing import RoutedAMQP, installed, routing_class

logger = get_logger(__name__)

_STEP = "celery_leader.worker.consumer_step:LeaderStep"

_WORKER_OPTIONS = (
    click.Option(
        ["--no-candidate"],
        is_flag=True,
        default=False,
        help="Keep this worker out of every leader election (celery_leader).",
    ),
    click.Option(
        ["--elections"],
        metavar="NAME,NAME...",
        help="Take part in these leader elections only (celery_leader; or leader_elections).",
    ),
    click.Option(
        ["--leader-priority"],
        type=int,
        help="The candidate with the highest comes first (celery_leader; or leader_priority).",
    ),
)


def _check_scheduler(ctx: click.Context, *_: Any) -> None:
    """Refuse a scheduler that does not exist; called once the other options are read."""
    if ctx.command.name == "beat" or ctx.params.get("beat"):
        try:
            check_scheduler(ctx.params.get("scheduler"))
        except LeaderError as exc:
            raise click.ClickException(str(exc)) from exc


#: Its callback runs once a command line is read, before Celery makes anything from it.
_AFTER_OPTIONS = click.Option(
    ["--check-scheduler"], is_flag=True, hidden=True, expose_value=False, callback=_check_scheduler
)


def install(app: Celery) -> Celery:
    """Elect leaders among this app's workers and beats; calling it twice is harmless.

    Adds the worker's bootstep and its options (``--no-candidate``, ``--elections``,
    ``--leader-priority``), the route of leader-only tasks, and the guard that keeps a
    following beat of any scheduler class from sending them. Nothing is connected, read from
    ``app.conf`` or started until a worker or beat starts. A setting that cannot be used is
    refused then. Returns ``app``.

    Raises:
        LeaderError: ``app`` is no Celery app.
    """
    app = celery_app(app, "install")
    if installed(app):
        return app
    app.amqp_cls = RoutedAMQP(app.amqp_cls)
    app.steps["consumer"].add(_STEP)
    app.user_options["worker"].update((*_WORKER_OPTIONS, _AFTER_OPTIONS))
    app.user_options["beat"].add(_AFTER_OPTIONS)
    if "amqp" in vars(app):
        # The AMQP object exists already: keep it and its queues, and make its routes again.
        set_class(app.amqp, routing_class(type(app.amqp)))
        route_anew(app.amqp)
    if app.finalized:
        adopt_tasks(app)
    signals.beat_init.connect(_guard_beat, weak=False, dispatch_uid="celery_leader.guard_beat")
    return app


def _guard_beat(sender: Any, **_: Any) -> None:
    """Have a beat of any scheduler class take part, for the leader-only tasks it sends."""
    app = sender.app
    if not installed(app) or isinstance(sender.scheduler, ElectedScheduler):
        return
    embedded = worker_pid() is not None
    scheduler = type(sender.scheduler)
    logger.warning("beat: %s", told_of(scheduler, embedded=embedded))
    adopt_tasks(app)
    runtime = runtime_of(app)
    if not runtime.task_elections:
        return
    try:
        candidate = runtime.participation.enter(
            BEAT,
            runtime.node_names.of_beat(),
            role="beat",
            scheduler=f"{scheduler.__module__}.{scheduler.__qualname__}",
            fenced=False,
        )
    except LeaderError as exc:
        # Celery's signals swallow any other exception, and this beat would send on, unelected.
        logger.critical("%s", exc)
        raise SystemExit(1) from exc
    runtime.tell_unknown_settings()
    if embedded and candidate is not None:
        _resign_at_sigterm(runtime, candidate)


def _resign_at_sigterm(runtime: AppRuntime, candidate: LocalCandidate) -> None:
    """Resign when the worker ends its beat with SIGTERM.

    By default that signal ends the process at once, without its exit functions.
    """

    def resign(*_: Any) -> None:
        runtime.participation.resign(candidate).wait(runtime.participation.farewell_timeout)
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, resign)
