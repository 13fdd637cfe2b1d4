"""Scheduler classes of beats: which exist, what foreign ones do, and what ours do not read.

Guaranteed: no scheduler is imported. The models of django-celery-beat are imported only where
Django is in use already. Not guaranteed: that a scheduler which is not refused here can be made. If
it cannot, Celery says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from typing import Any

from celery import Celery
from celery.utils.imports import load_extension_class_names

from celery_leader.errors import LeaderError, shown

from .spelling import closest

_GROUP = "celery.beat_schedulers"
#: What some of the schedulers need: the module, and the package that it comes in.
_NEEDS = {
    "leader-django": ("django_celery_beat", "django-celery-beat"),
    "leader-redbeat": ("redbeat", "celery-redbeat"),
}


def check_scheduler(name: Any) -> None:
    """Refuse a name that no scheduler has, such as a misspelt one.

    Raises:
        LeaderError: no scheduler has that name, or a package that it needs is not installed.
    """
    if not isinstance(name, str):
        return
    aliases = dict(load_extension_class_names(_GROUP))
    module, package = _NEEDS.get(name, ("", ""))
    if module and not _is_there(module):
        raise LeaderError(f"the scheduler {name} needs the package {package}: install it")
    if name in aliases:
        return
    module, _, attribute = name.rpartition(":" if ":" in name else ".")
    loaded = sys.modules.get(module)
    if module and _is_there(module) and (loaded is None or hasattr(loaded, attribute)):
        return
    meant = closest(name, aliases)
    hint = f": did you mean {meant}?" if meant else "."
    raise LeaderError(
        f"there is no scheduler {shown(name)}{hint} Known are"
        f" {', '.join(sorted(aliases))}, or your own as module:Class"
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
    except Exception:  # its package cannot be imported; Celery says why
        return True


def told_of(scheduler: type, *, embedded: bool) -> str:
    """One line that says what a beat with a foreign scheduler does, and what to set."""
    where = "worker that runs with -B" if embedded else "beat that runs"
    return (
        f"{scheduler.__name__} sends ordinary periodic tasks from every {where}: two send each of"
        f" them twice; to have only the leading beat send, {_cure(scheduler, embedded)}"
    )


def _cure(scheduler: type, embedded: bool) -> str:
    command = "celery worker -B --scheduler" if embedded else "celery beat -S"
    homes = {cls.__module__.partition(".")[0] for cls in scheduler.__mro__}
    if "django_celery_beat" in homes:
        return _to_read_rows(command)
    if "redbeat" in homes:
        return f'set beat_scheduler = "leader-redbeat", or use: {command} leader-redbeat'
    if homes <= {"celery", "builtins"}:
        return f"use: {command} leader"
    return (
        f"put LeaderMixin of celery_leader.beat before {scheduler.__name__} in a class of your own"
    )


def _to_read_rows(command: str) -> str:
    return (
        'set CELERY_BEAT_SCHEDULER = "leader-django" in Django\'s settings, or use:'
        f" {command} leader-django"
    )


#: What to do about entries that are ``unread``.
TO_READ_THEM = _to_read_rows("celery beat -S")


def unread(app: Celery) -> str | None:
    """A sentence about the entries that ``-S leader`` does not read; ``None`` if there are none.

    Asks the database of django-celery-beat, where that is in use.
    """
    if "django" not in sys.modules:
        return None
    from django.apps import apps

    if not (apps.ready and apps.is_installed("django_celery_beat")):
        return None
    own = app.conf.beat_schedule or {}
    rows = _enabled_rows(own)
    if rows == 0 or (rows is None and own):
        return None
    count = "" if rows is None else f" ({rows} enabled)"
    return (
        f"the entries in the database of django-celery-beat{count} are not read by this scheduler"
        " and never sent"
    )


def _enabled_rows(own: Any) -> int | None:
    """How many rows are enabled beside the app's own entries; ``None`` if that is not known."""
    with contextlib.suppress(Exception):  # no table yet, no database, an app that is half set up
        from django.db import connections
        from django_celery_beat.models import PeriodicTask

        rows = PeriodicTask.objects.filter(enabled=True)
        names = {*own, "celery.backend_cleanup"}
        try:
            return sum(name not in names for name in rows.values_list("name", flat=True))
        finally:
            connections[rows.db].close()
    return None
