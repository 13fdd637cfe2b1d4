"""Elections as they go on, for ``status --watch``.

Guaranteed: each look costs one round trip to Redis, or two where beat's schedule is counted,
however many elections there are. A Redis that does not answer does not end the watch. Not
guaranteed: that every change is seen at once; what happened between two looks comes from the
history.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from celery_leader.errors import StoreUnavailable

from .election_table import election_table, headline
from .leaderships import changes, history_as_json
from .overview import Overview
from .table import Table
from .words import iso, moment

#: How many leaderships of each election a look needs.
LEADERSHIPS = 10
_LINES = 8  # of the last changes, at a terminal
_LOOKS = 10  # over which the rate of dispatches is counted
_CANDIDATES = 15  # of each election, at a terminal


@dataclass(frozen=True, slots=True)
class Look:
    """The elections as they stood at one moment.

    Attributes:
        at: the moment, in seconds since 1970 by this machine's clock.
        overviews: the elections; while Redis does not answer, as they were seen last.
        dispatched: how many messages beat's schedule has ever sent; ``None`` if unknown.
        rate: beat's dispatches a second over the latest looks; ``None`` before the second look.
        error: why Redis did not answer; ``None`` if it did.
    """

    at: float
    overviews: Sequence[Overview]
    dispatched: int | None = None
    rate: float | None = None
    error: str | None = None

    def as_tables(self) -> list[Table]:
        """The look for a terminal."""
        lines = [(f"{moment(at)}  {line}",) for at, line in changes(self.overviews)[:_LINES]]
        sent = "" if self.rate is None else f"   beat dispatches {self.rate:.1f} messages a second"
        title = f"{moment(self.at)}{sent}   Ctrl-C ends this"
        return [
            *([Table(f"no contact: {self.error}", style="bold red")] if self.error else []),
            Table(title, style="dim"),
            *(election_table(each, _CANDIDATES) for each in self.overviews if each.contested),
            Table("last changes", ("",), lines) if lines else Table("nobody has led yet"),
        ]

    def as_json(self) -> dict[str, Any]:
        """The look for scripts."""
        if self.error:
            return {"at": iso(self.at), "error": self.error}
        return {
            "at": iso(self.at),
            "error": None,
            "elections": [each.as_json() for each in self.overviews],
            "last_changes": {o.election: history_as_json(o.leaderships) for o in self.overviews},
            "dispatched_per_second": None if self.rate is None else round(self.rate, 3),
        }


def looks(
    look: Callable[[], Look], pause: Callable[[], object], clock: Callable[[], float]
) -> Iterator[Look]:
    """One look after the other, for ever.

    Raises:
        StoreUnavailable: Redis did not answer the first look.
    """
    rate = Rate()
    latest = look()
    while True:
        latest = replace(latest, rate=rate.note(latest))
        yield latest
        pause()
        try:
            latest = look()
        except StoreUnavailable as exc:
            latest = replace(latest, at=clock(), dispatched=None, error=str(exc))


class Rate:
    """Dispatches a second, over the latest looks."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=_LOOKS)

    def note(self, look: Look) -> float | None:
        """The rate with ``look``; ``None`` before there are two looks to compare."""
        if look.dispatched is not None:
            # Fewer than before: an entry was removed, and its count with it.
            if self._seen and look.dispatched < self._seen[-1][1]:
                self._seen.clear()
            self._seen.append((look.at, look.dispatched))
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return None
        (since, before), (until, after) = self._seen[0], self._seen[-1]
        return (after - before) / (until - since)


class Diary:
    """Looks as lines: everything at first, and then what has changed."""

    def __init__(self) -> None:
        self._told: set[tuple[float, str]] = set()
        self._states: dict[tuple[str, str], str] | None = None
        self._contact = True

    def lines(self, look: Look) -> Iterator[str]:
        """The news in ``look``, compared with the looks before."""
        now, had_contact = moment(look.at), self._contact
        self._contact = look.error is None
        if look.error is not None:
            if had_contact:
                yield f"{now}  no contact: {look.error}"
            return
        if not had_contact:
            yield f"{now}  in contact with Redis again"
        told, states = changes(look.overviews), _states(look.overviews)
        if self._states is None:
            yield from (f"{now}  {headline(each)}" for each in look.overviews)
        else:
            new = [line for line in reversed(told) if line not in self._told]
            yield from (f"{moment(at)}  {line}" for at, line in new)
        before = self._states or {}
        for (election, node), state in states.items():
            if line := _moved(before.get((election, node)), state):
                yield f"{now}  {election}: {node} {line}"
        for election, node in sorted(before.keys() - states.keys()):
            yield f"{now}  {election}: {node} is gone"
        # A line that this look has no more is too old for any later one, too.
        self._told, self._states = set(told), states


def _moved(before: str | None, state: str) -> str | None:
    """The words for a candidate's new state; ``None`` if it is old or the history tells it."""
    if before is None:
        return f"takes part: {state}"
    if before == state or {before, state} == {"leader", "follower"}:
        return None
    return f"is {state}"


def _states(overviews: Sequence[Overview]) -> dict[tuple[str, str], str]:
    return {
        (overview.election, each.node): overview.state(each)
        for overview in overviews
        for each in overview.candidates
    }
