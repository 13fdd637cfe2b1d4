"""Judges what each contender sent, from the queue in Redis alone. Pure: messages in, findings out.

No contender but one says which tick a message is for, so this is judged by time: an entry
is due one interval after it was sent last. When a message came is known between two looks
at the queue, and a finding counts only if it holds wherever in between that was: a machine
that stood still makes no duplicates and no missed ticks.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Of an interval. An entry is due one interval after its scheduler looked at the clock, which
# is a little before its message came; what is early by less than this is no duplicate.
_EARLY = 0.2


@dataclass(frozen=True, slots=True)
class Message:
    """One message: it came after one moment of Redis and not later than another, in µs."""

    entry: str
    pid: int
    after: int
    by: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of a stretch of time.

    Attributes:
        sent: messages.
        duplicates: messages that came before their entry was due again.
        missed: due times that passed before the next message came.
        longest_gap: seconds without any message.
    """

    sent: int = 0
    duplicates: int = 0
    missed: int = 0
    longest_gap: float = 0.0

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.sent + other.sent,
            self.duplicates + other.duplicates,
            self.missed + other.missed,
            max(self.longest_gap, other.longest_gap),
        )


def judge(
    messages: Sequence[Message], intervals: Mapping[str, float], begins: int, ends: int
) -> Findings:
    """What came of the messages from ``begins`` to ``ends``, in µs; earlier ones are context."""
    of_entry: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        of_entry[message.entry].append(message)
    total = Findings()
    for entry, sent in of_entry.items():
        total += _of_entry(sent, round(intervals[entry] * 1e6), begins, ends)
    return total + Findings(longest_gap=_longest_gap(messages, begins, ends))


def _of_entry(messages: Sequence[Message], every: int, begins: int, ends: int) -> Findings:
    sent = duplicates = missed = 0
    last: Message | None = None
    for message in messages:
        counts = begins <= message.by < ends
        sent += counts
        if last is not None and message.by - last.after < (1 - _EARLY) * every:
            duplicates += counts
            continue
        if last is not None and counts:
            missed += max(0, (message.after - last.by) // every - 1)
        last = message
    return Findings(sent, duplicates, missed)


def _longest_gap(messages: Sequence[Message], begins: int, ends: int) -> float:
    gaps = (
        after.after - before.by
        for before, after in itertools.pairwise(messages)
        if begins <= after.by < ends
    )
    return max(0, *gaps, 0) / 1e6
