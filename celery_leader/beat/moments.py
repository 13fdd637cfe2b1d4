"""Converts moments to seconds, to stored text and to an entry's zone, and adds time to them."""

from __future__ import annotations

import datetime
from typing import Any

from celery.utils.time import maybe_make_aware


def timestamp(moment: datetime.datetime) -> float:
    """Seconds since the epoch; a naive moment is UTC, as in Celery."""
    return float(maybe_make_aware(moment).timestamp())


def utc_text(moment: datetime.datetime) -> str:
    """``moment`` as it is stored and put into headers: UTC, ISO 8601, microseconds."""
    aware = maybe_make_aware(moment)
    return str(aware.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds"))


def add_time(moment: datetime.datetime, delta: datetime.timedelta) -> datetime.datetime:
    """``moment`` plus ``delta`` of real time; Python's own ``+`` adds wall-clock time."""
    aware: datetime.datetime = maybe_make_aware(moment)
    return (aware.astimezone(datetime.timezone.utc) + delta).astimezone(aware.tzinfo)


def in_zone_of(entry: Any, moment: datetime.datetime) -> datetime.datetime:
    """``moment`` in the zone of the entry's clock; the entry's days may begin at midnight there."""
    zone = entry.default_now().tzinfo
    aware: datetime.datetime = maybe_make_aware(moment)
    return moment if zone is None else aware.astimezone(zone)
