"""Past leaderships, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from celery_leader.store.history import PastLeadership

from .overview import Overview
from .table import Table
from .words import iso, moment, span

_COLUMNS = ("node", "from", "to", "for", "why it ended", "term")


def history_table(election: str, leaderships: Sequence[PastLeadership]) -> Table:
    """Who led ``election``, from when, until when, and why it ended."""
    rows = [
        (
            f"{'*' if past.lasts else ' '} {past.node}",
            moment(past.elected_at),
            "" if past.ended_at is None else f"to {moment(past.ended_at)}",
            _lasted(past),
            _why(past),
            f"term {past.term}",
        )
        for past in leaderships
    ]
    title = f"{election}:" if rows else f"{election}: nobody has led yet"
    style = "bold" if rows else "dim"
    return Table(title, _COLUMNS, rows, style=style, styles={"*": "bold green"})


def history_as_json(leaderships: Iterable[PastLeadership]) -> list[dict[str, Any]]:
    """Leaderships for scripts."""
    return [
        {
            "node": past.node,
            "term": past.term,
            "from": iso(past.elected_at),
            "to": None if past.ended_at is None else iso(past.ended_at),
            "reason": past.reason,
            "successor": past.successor,
        }
        for past in leaderships
    ]


def changes(overviews: Iterable[Overview]) -> list[tuple[float, str]]:
    """The beginnings and ends of leaderships, the latest first: a moment and a line each."""
    lines = []
    for overview in overviews:
        for past in overview.leaderships:
            node = f"{overview.election}: {past.node}"
            lines.append((past.elected_at, f"{node} elected, term {past.term}"))
            if not past.lasts and past.ended_at is not None:
                lines.append((past.ended_at, f"{node} led for {_lasted(past)}: {_why(past)}"))
    return sorted(lines, reverse=True)


def _why(past: PastLeadership) -> str:
    if past.reason is None:
        return "leads"
    return f"{past.reason}, to {past.successor}" if past.successor else past.reason


def _lasted(past: PastLeadership) -> str:
    return "" if past.ended_at is None else span(past.ended_at - past.elected_at)
