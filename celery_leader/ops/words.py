"""Writes moments, lengths of time and lists of names, for people and for scripts."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence

_LAST_SECOND = 253_402_300_799.0  # of the year 9999


def moment(at: float) -> str:
    """A moment of Redis's clock, in UTC."""
    return _utc(at).strftime("%Y-%m-%d %H:%M:%SZ")


def iso(at: float) -> str:
    """A moment of Redis's clock, for scripts."""
    return _utc(at).isoformat(timespec="milliseconds")


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if hours == 0:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{hours} h {minutes % 60} min" if days == 0 else f"{days} d {hours % 24} h"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of ``names``, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def nodes_by_value(values: Mapping[str, Sequence[str]]) -> str:
    """Each value with some of its nodes, in one line."""
    return "; ".join(f"{value} ({some(set(nodes))})" for value, nodes in sorted(values.items()))


def _utc(at: float) -> datetime.datetime:
    # Whoever can write to Redis can write any number.
    seconds = min(max(at, 0.0), _LAST_SECOND)
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
