"""The ``leader_*`` settings of an app, read from its configuration and checked.

A value that cannot be used raises ``LeaderError`` with the name of the setting. Nothing
is written to ``app.conf``: ``add_defaults`` would override the user's own values.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from celery import Celery

from celery_leader.core.names import check_name
from celery_leader.core.timing import DEFAULT_LEASE, Timing
from celery_leader.errors import LeaderError, kind_of, shown

from .spelling import closest

WORKER = "worker"
BEAT = "beat"

#: Seconds; longer than any rolling deployment, or one that is rolled back, takes.
DEFAULT_RETENTION = 30 * 86400.0

#: Seconds; as long as Celery's own beat may be silent before it counts as stuck.
DEFAULT_WATCHDOG = 60.0

#: Seconds; the clocks of machines differ by less if something keeps them right.
DEFAULT_CLOCK_TOLERANCE = 60.0

#: Seconds; as long as Celery keeps results. A deployment may stand half done over a night.
DEFAULT_UNKNOWN_TASK_TIMEOUT = 86400.0

_PREFIX = "leader_"
_LEAST_WATCHDOG = 1.0
_LEAST_TOLERANCE = 0.1
_LEAST_UNKNOWN = 1.0
_MOST_PRIORITY = 1000
_LAST_PORT = 65535
_MOST = 10**9  # of anything; some thirty years, for durations


class CatchUp(enum.Enum):
    """Which of the ticks that fell due while nobody led are sent."""

    ONE = "one"
    ALL = "all"
    NONE = "none"

    @classmethod
    def named(cls, value: Any, where: str) -> CatchUp:
        """The mode called ``value``.

        Raises:
            LeaderError: there is no such mode; the message says ``where`` it was set.
        """
        try:
            return cls(value)
        except ValueError:
            raise LeaderError(
                f"{where} is {shown(value)}: it must be 'one', 'all' or 'none'"
            ) from None


@dataclass(frozen=True, slots=True)
class Settings:
    """The ``leader_*`` settings of one app, checked.

    Raises:
        LeaderError: a value cannot be used; the message names the setting.
    """

    timing: Timing
    namespace: str
    queue: str
    url: str | None
    transport_options: dict[str, Any]
    candidate: bool
    elections: tuple[str, ...] | None
    priority: int
    preempt: bool
    history_size: int
    watchdog: float
    wait_replicas: int
    beat_catch_up: CatchUp
    beat_catch_up_max: int
    beat_clock_tolerance: float
    schedule_retention: float
    unknown_task_timeout: float
    abort_grace: float | None
    beat_node: str | None
    metrics_port: int | None
    metrics_address: str

    @classmethod
    def of(cls, app: Celery) -> Settings:
        """The settings in ``app.conf``, where Django's ``CELERY_LEADER_*`` arrive too."""
        get = app.conf.get
        default_queue = str(app.conf.task_default_queue)
        namespace = get("leader_namespace", None)
        elections = get("leader_elections", None)
        options = get("leader_transport_options", None) or {}
        if not isinstance(options, dict):
            raise LeaderError(f"leader_transport_options is {kind_of(options)}: it must be a dict")
        url = get("leader_url", None)
        if url is not None and not isinstance(url, str):
            raise LeaderError(f"leader_url is {kind_of(url)}: it must be a URL in a string")
        return cls(
            timing=_timing(app),
            namespace=check_name(namespace, "leader_namespace") if namespace else default_queue,
            queue=_queue(app, default_queue),
            url=url or None,
            transport_options=options,
            candidate=_truth(app, "leader_candidate", True),
            elections=None if elections is None else check_elections(elections, "leader_elections"),
            priority=check_priority(_given(app, "leader_priority", 0), "leader_priority"),
            preempt=_truth(app, "leader_preempt", False),
            abort_grace=_abort_grace(app),
            history_size=_count(app, "leader_history_size", 256),
            watchdog=_seconds_or_off(
                app, "leader_watchdog", DEFAULT_WATCHDOG, least=_LEAST_WATCHDOG
            ),
            wait_replicas=_count(app, "leader_wait_replicas", 0, least=0),
            beat_catch_up=CatchUp.named(
                _given(app, "leader_beat_catch_up", "one"), "leader_beat_catch_up"
            ),
            beat_catch_up_max=_count(app, "leader_beat_catch_up_max", 100),
            beat_clock_tolerance=_seconds_or_off(
                app, "leader_beat_clock_tolerance", DEFAULT_CLOCK_TOLERANCE, least=_LEAST_TOLERANCE
            ),
            schedule_retention=_retention(app),
            unknown_task_timeout=_seconds_or_off(
                app,
                "leader_unknown_task_timeout",
                DEFAULT_UNKNOWN_TASK_TIMEOUT,
                least=_LEAST_UNKNOWN,
            ),
            beat_node=_text(app, "leader_beat_node", "") or None,
            metrics_port=_port(app, "leader_metrics_port"),
            metrics_address=_text(app, "leader_metrics_address", "127.0.0.1"),
        )


def known_settings() -> frozenset[str]:
    """The names of all ``leader_*`` settings."""
    every = {f"{_PREFIX}{field.name}" for field in (*fields(Settings), *fields(Timing))}
    return frozenset(every - {f"{_PREFIX}timing"})


def unknown_settings(app: Celery) -> Iterator[str]:
    """A sentence for each ``leader_*`` setting in ``app.conf`` that does not exist.

    It may be misspelt. Celery allows any name in an app's configuration, so it is not refused.
    """
    keys = sorted(app.conf.keys())  # reads the configuration; its prefix is known only then
    prefix = app.conf.prefix or ""  # with Django's CELERY_ all names are in capitals
    ours = _spelt(_PREFIX, prefix)
    known = {_spelt(name, prefix).removeprefix(ours) for name in known_settings()}
    for key in keys:
        rest = key.removeprefix(ours)
        # A settings module also contains the functions and classes that it imports.
        if rest == key or rest in known or callable(app.conf[key]):
            continue
        meant = closest(rest, known)
        hint = f"; did you mean {ours}{meant}?" if meant else ""
        yield f"{key} is no setting of celery_leader and does nothing{hint}"


def _spelt(name: str, prefix: str) -> str:
    return prefix + name.upper() if prefix.isupper() else prefix + name


def check_elections(names: Any, what: str) -> tuple[str, ...]:
    """Return ``names`` if workers can take part in elections of these names.

    Raises:
        LeaderError: they cannot; the message names the setting or option, ``what``.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise LeaderError(f"{what} is {shown(names)}: it must be a list of election names")
    checked = tuple(check_name(name, f"{what}:") for name in names)
    if BEAT in checked:
        raise LeaderError(
            f"{what} names {BEAT!r}: beats elect their leader among themselves, workers take no"
            " part in that"
        )
    return checked


def check_priority(value: Any, what: str) -> int:
    """Return ``value`` if it can be a priority.

    Raises:
        LeaderError: it cannot; the message names the setting or option, ``what``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MOST_PRIORITY:
        raise LeaderError(
            f"{what} is {shown(value)}: it must be a whole number from -{_MOST_PRIORITY} to"
            f" {_MOST_PRIORITY}"
        )
    return value


def _given(app: Celery, setting: str, default: Any) -> Any:
    value = app.conf.get(setting, None)
    return default if value is None else value


def _queue(app: Celery, default_queue: str) -> str:
    queue = _given(app, "leader_queue", f"{default_queue}.leader")
    if not isinstance(queue, str) or queue in ("", default_queue):
        raise LeaderError(
            f"leader_queue is {shown(queue)}: it must be the name of a queue of its own, which the"
            f" leader alone consumes, and not task_default_queue ({shown(default_queue)})"
        )
    return queue


def _truth(app: Celery, setting: str, default: bool) -> bool:
    value = app.conf.get(setting, default)
    if not isinstance(value, bool):
        raise LeaderError(f"{setting} is {shown(value)}: it must be True or False")
    return value


def _number(app: Celery, setting: str, default: float) -> float:
    value = _given(app, setting, default)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LeaderError(f"{setting} is {shown(value)}: it must be a number")
    if not abs(value) <= _MOST:  # refuses NaN too
        raise LeaderError(f"{setting} is out of range: it must be {_MOST:,} at most")
    return value


def _seconds_or_off(app: Celery, setting: str, default: float, *, least: float) -> float:
    seconds = _number(app, setting, default)
    if seconds and not seconds >= least:
        raise LeaderError(
            f"{setting} is {seconds!r}: it must be {least:g} seconds or more, or 0 to turn it off"
        )
    return seconds


def _retention(app: Celery) -> float:
    retention = _number(app, "leader_schedule_retention", DEFAULT_RETENTION)
    if not retention > 0:
        raise LeaderError(
            f"leader_schedule_retention is {shown(retention)}: it must be above 0, in seconds"
        )
    return retention


def _abort_grace(app: Celery) -> float | None:
    if _given(app, "leader_abort_grace", None) is None:
        return None
    grace = _number(app, "leader_abort_grace", 0.0)
    if grace < 0:
        raise LeaderError(
            f"leader_abort_grace is {shown(grace)}: it must be 0 or more, in seconds, or None"
        )
    return grace


def _count(app: Celery, setting: str, default: int, *, least: int = 1) -> int:
    count = _number(app, setting, default)
    if count < least or count != int(count):
        raise LeaderError(f"{setting} is {count!r}: it must be a whole number, {least} or more")
    return int(count)


def _port(app: Celery, setting: str) -> int | None:
    if _given(app, setting, None) is None:
        return None
    port = _count(app, setting, 0, least=0)
    if port > _LAST_PORT:
        raise LeaderError(f"{setting} is {port!r}: it must be a port, {_LAST_PORT} at most")
    return port


def _text(app: Celery, setting: str, default: str) -> str:
    value = _given(app, setting, default)
    if not isinstance(value, str) or (not value and default):
        raise LeaderError(f"{setting} is {shown(value)}: it must be a string")
    return value


def _timing(app: Celery) -> Timing:
    lease = _number(app, "leader_lease_duration", DEFAULT_LEASE)
    if not lease > 0:
        raise LeaderError(f"leader_lease_duration is {lease!r}: it must be above 0")
    rest = Timing.of_lease(lease)
    return Timing(
        lease_duration=lease,
        renew_interval=_number(app, "leader_renew_interval", rest.renew_interval),
        renew_attempts=_count(app, "leader_renew_attempts", rest.renew_attempts),
        renew_retry_delay=_number(app, "leader_renew_retry_delay", rest.renew_retry_delay),
        election_jitter=_number(app, "leader_election_jitter", rest.election_jitter),
        operation_timeout=_number(app, "leader_operation_timeout", rest.operation_timeout),
        bootstrap_delay=_number(app, "leader_bootstrap_delay", rest.bootstrap_delay),
    )
