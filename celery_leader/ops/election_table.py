"""One election as a table: the leader in its title, a candidate in each row."""

from __future__ import annotations

import math
from collections.abc import Iterator

from celery_leader.core.lease import State
from celery_leader.store.register import Candidate

from .findings import about_candidates
from .overview import Overview
from .queue_lines import queue_lines
from .table import Table
from .words import moment, span

_COLUMNS = ("node", "state", "last contact", "priority", "runs as", "versions")
#: Packages whose versions are shown.
_PACKAGES = ("celery_leader", "celery")
_MARKS = {"leader": "*", "held": "-", "silent": "?"}
_STYLES = {"*": "bold green", "-": "yellow", "?": "red"}


def election_table(overview: Overview, most: int | None = None) -> Table:
    """``overview`` with all its candidates, or with ``most`` of them."""
    # The leader first, then by name: between two looks no row moves without a reason.
    candidates = sorted(
        overview.candidates, key=lambda each: (overview.state(each) != "leader", each.node)
    )
    left_out = len(candidates) - len(candidates[:most])
    remarks = [f"and {left_out} more candidates"] if left_out else []
    return Table(
        headline(overview),
        _COLUMNS,
        [_row(overview, each) for each in candidates[:most]],
        [*remarks, *_remarks(overview)],
        style="bold" if overview.led else "bold red" if overview.contested else "dim",
        styles=_STYLES,
    )


def headline(overview: Overview) -> str:
    """The leader of the election, in one line."""
    record, led = overview.record, overview.led
    if led is not None:
        return (
            f"{overview.election}: {led.holder}  term {led.term}  {led.remaining:.1f} s left"
            f"  since {moment(led.elected_at)}"
        )
    if record is None:
        return f"{overview.election}: no leader"
    if record.state is State.RESERVED and record.remaining > 0 and record.successor:
        return f"{overview.election}: no leader  kept for {record.successor}"
    return f"{overview.election}: no leader  the last was {record.holder}, term {record.term}"


def _row(overview: Overview, candidate: Candidate) -> tuple[str, ...]:
    state, info = overview.state(candidate), candidate.info
    versions = info.versions if info else {}
    return (
        f"{_MARKS.get(state, ' ')} {candidate.node}",
        _held(candidate.held_for or 0.0) if state == "held" else state,
        f"seen {candidate.seen_ago:.1f} s ago",
        f"priority {candidate.priority}" if candidate.priority else "",
        info.place if info else "",
        ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name)),
    )


def _remarks(overview: Overview) -> Iterator[str]:
    for node, seconds in sorted(overview.held.items()):
        if not overview.has(node):
            yield f"{node} is {_held(seconds)}, and no candidate at present"
    for finding in about_candidates([overview]):
        yield finding.what
    if overview.queued is not None:
        yield from queue_lines(overview.queued)


def _held(seconds: float) -> str:
    return f"held for {span(seconds)}" if math.isfinite(seconds) else "held"
