"""The mark of a leader-only task: which election's leader runs it, and how.

The mark stands on a decorated function. If ``run`` is a method of a class, which other tasks may
inherit, the mark stands on the task itself. Celery's maps carry no mark: a map has the options of
the task that its arguments name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_leader.compat.celery import task_named
from celery_leader.core.names import check_name
from celery_leader.errors import LeaderError
from celery_leader.runtime.settings import BEAT, WORKER

#: Celery's tasks that run the body of another task, which their arguments name.
MAPS = frozenset({"celery.map", "celery.starmap"})

_MARK = "__leader_only__"
_SEND_FROM = ("anywhere", "leader")
_ON_FOLLOWER = ("forward", "skip")
_ON_DEPOSED = ("finish", "abort")
_ON_BUSY = ("wait", "skip")


@dataclass(frozen=True, slots=True)
class LeaderOnly:
    """The options of ``leader_only`` for one task.

    Raises:
        LeaderError: an option has a value that it cannot have.
    """

    election: str = WORKER
    send_from: str = "anywhere"
    on_follower: str = "forward"
    on_deposed: str = "finish"
    max_running: int | None = None
    on_busy: str = "wait"

    def __post_init__(self) -> None:
        check_name(self.election)
        if self.election == BEAT:
            raise LeaderError(
                "leader_only(election='beat'): beats elect their leader among themselves and run"
                " no tasks; name 'worker' or an election of your own"
            )
        for option, allowed in (
            ("send_from", _SEND_FROM),
            ("on_follower", _ON_FOLLOWER),
            ("on_deposed", _ON_DEPOSED),
            ("on_busy", _ON_BUSY),
        ):
            value = getattr(self, option)
            if value not in allowed:
                raise LeaderError(
                    f"leader_only({option}={value!r}): it must be"
                    f" {' or '.join(repr(name) for name in allowed)}"
                )
        most = self.max_running
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise LeaderError(
                f"leader_only(max_running={most!r}): it must be a whole number, 1 or more, or None"
                " for no limit"
            )
        if most is None and self.on_busy == "skip":
            raise LeaderError(
                "leader_only(on_busy='skip'): without max_running a task is never busy; set it, too"
            )


def mark(target: Any, options: LeaderOnly) -> None:
    """Mark a function or a task as leader-only."""
    setattr(target, _MARK, options)


def options_of(task: Any) -> LeaderOnly | None:
    """The leader-only options of ``task``; ``None`` for an ordinary task."""
    for marked in (task, getattr(task, "run", None)):
        options: LeaderOnly | None = getattr(marked, _MARK, None)
        if options is not None:
            return options
    # Class attributes come last: a mark overrules them.
    declared = getattr(task, "leader_options", None)
    return declared() if callable(declared) else None


def options_for(task: Any, args: Any, kwargs: Any) -> LeaderOnly | None:
    """The leader-only options for one call of ``task``.

    A map has the options of the task that it maps.
    """
    if task.name not in MAPS:
        return options_of(task)
    return options_of(task_named(task.app, mapped_name(args, kwargs)))


def mapped_name(args: Any, kwargs: Any) -> str | None:
    """The name of the task that a map with these arguments runs."""
    inner = (kwargs or {}).get("task") or next(iter(args or ()), None)
    name = inner.get("task") if isinstance(inner, dict) else inner
    return name if isinstance(name, str) else None
