"""Past leaderships, read from an election's lines: who led, from when until when, and why.

A leader writes the reason when it gives the lease up. If it could not, its successor writes
``expired``, and the former leader writes the true reason once it is back.

Whoever can write to Redis can add lines. Guaranteed: the result contradicts
neither the record nor itself (terms that fall, moments in the future, an end before its
beginning). Not guaranteed: that every line is true. A forged leadership between two real ones,
with a term between theirs, looks like a real one.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from celery_leader.core.lease import Announcement, Record, State, cursor_order, latest_term

EXPIRED = "expired"
RECORD_LOST = "record lost"

#: Kinds of lines that are written in one step with the record, which names the last of them.
_WITH_RECORD = ("elected", "resigned", "reserved", "asked")

_CLOCKS_APART = 86400.0  # seconds by which the store's clock may have been set back meanwhile

# Reasons that the next leader or the record gives; the former leader itself knows better.
_GUESSES = (None, EXPIRED, RECORD_LOST)


@dataclass(frozen=True, slots=True)
class PastLeadership:
    """One leadership. Moments are seconds since 1970 by the store's clock.

    Attributes:
        node: the node that led.
        term: its term.
        elected_at: when it was elected.
        ended_at: when it ended; ``None`` while it lasts, and where nobody knows.
        reason: why it ended; ``None`` while it lasts.
        successor: the node that the lease was given to, if one was named.
    """

    node: str
    term: int
    elected_at: float
    ended_at: float | None = None
    reason: str | None = None
    successor: str | None = None

    @property
    def lasts(self) -> bool:
        """Whether it had not ended when it was read."""
        return self.reason is None


def past_leaderships(
    lines: Iterable[Announcement], record: Record | None, read_at: float
) -> list[PastLeadership]:
    """The leaderships in ``lines`` (the oldest first), the latest first.

    Args:
        lines: an election's history; its beginning may have been cut off.
        record: the election's record as it stood at ``read_at``.
        read_at: a moment of the store's clock.
    """
    found: dict[int, PastLeadership] = {}
    current: int | None = None
    for line in _credible(list(lines), record, read_at):
        if line.kind == "elected":
            former = found.get(current or 0)
            if former is not None and former.lasts:
                ended_at = moment_of(line) if line.ended_at is None else line.ended_at
                found[former.term] = replace(
                    former, ended_at=ended_at, reason=line.reason or EXPIRED
                )
            current = line.term
            found[current] = PastLeadership(line.node, line.term, moment_of(line))
        elif line.kind in _ENDS and _is_end_of(found.get(line.term), line):
            found[line.term] = _ENDS[line.kind](found[line.term], line)
    last = found.get(current or 0)
    if last is not None and last.lasts:
        found[last.term] = _as_recorded(last, record, read_at)
    if record is not None and record.led:
        # Whatever the lines say, or do not say any more: this one leads.
        begun = found.get(record.term) or PastLeadership(
            record.holder, record.term, record.elected_at
        )
        found[record.term] = replace(begun, ended_at=None, reason=None, successor=None)
    return sorted(found.values(), key=lambda past: past.term, reverse=True)


def _credible(
    lines: Sequence[Announcement], record: Record | None, read_at: float
) -> list[Announcement]:
    """The ``lines`` that a candidate can have written."""
    kept: list[Announcement] = []
    last = None
    if record is not None and record.event != "0-0":
        last = cursor_order(record.event)
    highest = latest_term(read_at) if record is None else record.term
    for line in lines:
        if not line.node or moment_of(line) > read_at + _CLOCKS_APART:
            continue
        if line.kind in _WITH_RECORD and last and last < cursor_order(line.cursor):
            continue  # these lines and the record are written together
        if line.kind == "elected":
            if line.term > highest:
                continue
        elif line.ended_at is not None and line.ended_at > read_at + _CLOCKS_APART:
            continue
        kept.append(line)
    elected = [line for line in kept if line.kind == "elected"]
    forged = {elected[i].cursor for i in _falling([line.term for line in elected])}
    return [line for line in kept if line.cursor not in forged]


def _falling(terms: Sequence[int]) -> set[int]:
    """The places of ``terms`` to leave out, so that the others are the longest rising sequence.

    A forged term is outnumbered by real ones. In a draw the terms that were written first stay.
    """
    ends: list[int] = []  # for each length, the lowest term that ends a sequence of that length
    by_length: list[list[int]] = []
    for place, term in enumerate(terms):
        length = bisect.bisect_left(ends, term)
        ends[length : length + 1] = [term]
        by_length[length : length + 1] = [[*(by_length[length : length + 1] or [[]])[0], place]]
    left, below, before = set(range(len(terms))), float("inf"), len(terms)
    for places in reversed(by_length):
        before = next(at for at in places if at < before and terms[at] < below)
        below = terms[before]
        left.discard(before)
    return left


def moment_of(line: Announcement) -> float:
    """When ``line`` was written, by the store's clock."""
    return int(line.cursor.partition("-")[0]) / 1000


def _is_end_of(past: PastLeadership | None, line: Announcement) -> bool:
    if past is None or line.node != past.node:
        return False
    ended_at = moment_of(line) if line.ended_at is None else line.ended_at
    return ended_at >= past.elected_at - _CLOCKS_APART


def _resigned(past: PastLeadership, line: Announcement) -> PastLeadership:
    # Lines of the first format named no reason.
    reason = line.reason or "resigned"
    return replace(past, ended_at=moment_of(line), reason=reason, successor=line.successor)


def _reserved(past: PastLeadership, line: Announcement) -> PastLeadership:
    if not past.lasts:
        return past
    ended_at = moment_of(line) if line.ended_at is None else line.ended_at
    return replace(past, ended_at=ended_at, reason=EXPIRED, successor=line.successor)


def _told_late(past: PastLeadership, line: Announcement) -> PastLeadership:
    if past.reason not in _GUESSES or (line.reason == "lost" and past.reason is not None):
        return past
    known = [moment for moment in (past.ended_at, line.ended_at) if moment is not None]
    return replace(past, ended_at=min(known, default=None), reason=line.reason or EXPIRED)


_ENDS = {"resigned": _resigned, "reserved": _reserved, "ended": _told_late}


def _as_recorded(past: PastLeadership, record: Record | None, read_at: float) -> PastLeadership:
    """The latest leadership, whose end is in no line, with the end that the record shows."""
    if record is None or record.term < past.term:
        return replace(past, reason=RECORD_LOST)
    if record.state is State.TAKEN and record.term == past.term and record.remaining <= 0:
        return replace(past, ended_at=read_at + record.remaining, reason=EXPIRED)
    return past
