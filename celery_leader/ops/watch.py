"""Elections as they go on: looked at again and again over one connection.

Guaranteed: one round trip to Redis for each look, however many elections there are, and
that a Redis that does not answer ends nothing: the next look tries again. Not guaranteed:
that every change is seen as it happens; what fell between two looks is read from history.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_leader.errors import StoreUnavailable
from celery_leader.store.history import PastLeadership

from .overview import Overview, changes, iso, moment, past_as_json
from .table import Sheet

#: Of each election, to tell its last changes from.
LEADERSHIPS = 10
_LINES = 8  # of last changes, at a terminal
_LOOKS = 10  # that the rate of dispatches is counted over
_CANDIDATES = 15  # of each election, at a terminal


@dataclass(frozen=True, slots=True)
class Look:
    """What was to be seen at one moment.

    Attributes:
        at: when, in seconds since 1970 by this machine's clock.
        overviews: the elections.
        histories: who led in each, the latest first.
        dispatched: how many messages beat's schedule has sent in its life; ``None`` if that
            was not asked for.
    """

    at: float
    overviews: Sequence[Overview] = ()
    histories: dict[str, list[PastLeadership]] = field(default_factory=dict)
    dispatched: int | None = None


class Rate:
    """Dispatches per second, over the latest looks that told."""

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


class Picture:
    """Looks, as a terminal shows them."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._per_second: float | None = None
        self._look: Look | None = None

    def seen(self, look: Look) -> list[Sheet]:
        """What to show now."""
        self._look = look
        self._per_second = self._rate.note(look)
        return self._sheets()

    def unanswered(self, why: str) -> list[Sheet]:
        """What to show while Redis does not answer: what was seen last, and that it is old."""
        return [Sheet(f"no contact: {why}", style="bold red"), *self._sheets()]

    def _sheets(self) -> list[Sheet]:
        look = self._look
        if look is None:
            return []
        lines = [(f"{moment(at)}  {line}",) for at, line in changes(look.histories)[:_LINES]]
        rate = self._per_second
        sent = "" if rate is None else f"   beat dispatches {rate:.1f} messages a second"
        return [
            Sheet(f"{moment(look.at)}{sent}   Ctrl-C ends this", style="dim"),
            *(each.sheet(most=_CANDIDATES) for each in look.overviews if each.contested),
            Sheet("last changes", ("",), lines) if lines else Sheet("nobody has led yet"),
        ]


class Diary:
    """Looks, as lines: all at first, and from then on what has changed."""

    def __init__(self) -> None:
        self._told: set[tuple[float, str]] = set()
        self._states: dict[tuple[str, str], str] | None = None
        self._contact = True

    def seen(self, look: Look) -> Iterator[str]:
        """What there is to say of ``look`` that was not said before."""
        now, states = moment(look.at), _states(look.overviews)
        told = changes(look.histories)
        if not self._contact:
            yield f"{now}  in contact with Redis again"
            self._contact = True
        if self._states is None:
            yield from (f"{now}  {each.headline()}" for each in look.overviews)
        else:
            lines = [line for line in reversed(told) if line not in self._told]
            yield from (f"{moment(at)}  {line}" for at, line in lines)
        before = self._states or {}
        for (election, node), state in states.items():
            if line := _moved(before.get((election, node)), state):
                yield f"{now}  {election}: {node} {line}"
        for election, node in sorted(before.keys() - states.keys()):
            yield f"{now}  {election}: {node} is gone"
        self._told, self._states = self._told | set(told), states

    def unanswered(self, at: float, why: str) -> Iterator[str]:
        """That Redis does not answer, once."""
        if self._contact:
            yield f"{moment(at)}  no contact: {why}"
        self._contact = False


class Stream:
    """Looks, as values for scripts: one for each."""

    def __init__(self) -> None:
        self._rate = Rate()

    def seen(self, look: Look) -> dict[str, Any]:
        """All of ``look``."""
        rate = self._rate.note(look)
        return {
            "at": iso(look.at),
            "error": None,
            "elections": [each.as_json() for each in look.overviews],
            "last_changes": {
                election: [past_as_json(past) for past in leaderships]
                for election, leaderships in look.histories.items()
            },
            "dispatched_per_second": None if rate is None else round(rate, 3),
        }

    def unanswered(self, at: float, why: str) -> dict[str, Any]:
        """That Redis did not answer."""
        return {"at": iso(at), "error": why}


def looks(
    look: Callable[[], Look], pause: Callable[[], object], clock: Callable[[], float]
) -> Iterator[Look | tuple[float, str]]:
    """One look after the other, for ever; when and why where there was no answer.

    Raises:
        StoreUnavailable: the first one had none, so there is probably none to be had.
    """
    yield look()
    while True:
        pause()
        try:
            seen: Look | tuple[float, str] = look()
        except StoreUnavailable as exc:
            seen = (clock(), str(exc))
        yield seen


def _moved(before: str | None, state: str) -> str | None:
    """What to say of a candidate whose state was another; nothing of what history tells."""
    if before is None:
        return f"takes part: {state}"
    if before == state or {before, state} == {"leader", "follower"}:
        return None
    return f"is {state}"


def _states(overviews: Iterable[Overview]) -> dict[tuple[str, str], str]:
    return {
        (overview.election, each.node): overview.state(each)
        for overview in overviews
        for each in overview.candidates
    }
