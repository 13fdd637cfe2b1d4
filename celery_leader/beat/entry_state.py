"""The state of one schedule entry, as the text that Redis keeps, and how long it is kept.

A state is a JSON object with the number of its format. Guaranteed: unknown fields do no harm. A
state of a later format is not taken for a damaged one, so that it can be left alone. The fields
``format``, ``unknown_since`` and ``project`` mean the same in every format.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

#: The format that this version writes. It grows when older versions could not use the new one.
FORMAT = 1

#: The errors of reading a field of a state that no beat has written.
SENSELESS = (ValueError, KeyError, TypeError, OverflowError)

_HIGHEST_FORMAT = 1000  # no version writes a higher one, so a higher one is damage
_PROJECT = "project"
_UNKNOWN_SINCE = "unknown_since"  # by the clock of Redis, in ms

#: No entry ran or was due outside of these years, and Python's calendar ends soon after them.
_FIRST_YEAR, _LAST_YEAR = 1971, 9000


def written(fields: Mapping[str, Any], project: str = "") -> str:
    """The state with these ``fields``, written by ``project``."""
    whose = {_PROJECT: project} if project else {}
    return json.dumps({"format": FORMAT, **whose, **fields})


def amended(stored: str, **fields: Any) -> str:
    """The same state with other values of these ``fields``."""
    return written({**read(stored), **fields})


def read(stored: str) -> dict[str, Any]:
    """The fields of a state; empty if it is damaged, or of a later format."""
    state = _loaded(stored)
    return {} if state is None or state.get("format", FORMAT) != FORMAT else state


def is_later(stored: str) -> bool:
    """Whether a later version wrote this state, in a format that this one does not know."""
    number = (_loaded(stored) or {}).get("format")
    return type(number) is int and FORMAT < number <= _HIGHEST_FORMAT


def project_of(stored: str) -> str:
    """The id of the project that wrote this state; empty if it has none."""
    project = (_loaded(stored) or {}).get(_PROJECT)
    return project if isinstance(project, str) else ""


def last_run(stored: str) -> tuple[datetime.datetime, int] | None:
    """When an entry ran last and how often; ``None`` if ``stored`` does not say."""
    state = read(stored)
    try:
        return moment_of(state["last_run_at"]), int(state["total_run_count"])
    except SENSELESS:
        return None


def moment_of(text: str) -> datetime.datetime:
    """A moment as it was stored.

    Raises:
        ValueError, OverflowError, TypeError: ``text`` is not a stored moment.
    """
    moment = datetime.datetime.fromisoformat(text)
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"{text!r} is out of all bounds")
    return moment


def counted_anew(stored: str, now: float, tolerance: float) -> str:
    """``stored``, but counted from ``now`` if it says that its entry ran in the future.

    Only a beat with a wrong clock writes that, and the entry would be silent until then. ``now`` is
    the time of Redis, and the clock of a beat may differ from it by ``tolerance``.
    """
    state = read(stored)
    last, claimed = _seconds(state.get("last_run_at")), state.get("claimed")
    # A claimed tick may be published already, and must be confirmed as it stands.
    if last is None or claimed or last <= now + tolerance:
        return stored
    # Drop ``schedule``, because the due time that goes with it is from the future too.
    kept = {field: value for field, value in state.items() if field != "schedule"}
    moment = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
    return written({**kept, "last_run_at": moment.isoformat(timespec="microseconds")})


def _seconds(text: Any) -> float | None:
    """The moment ``text``, of any year, in seconds since the epoch."""
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return moment.timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Tidying:
    """The changes that a leader makes to the states that it has read.

    Attributes:
        marks: by entry, its state as it is, and its new state.
        gone: the entries whose state is to be removed.
    """

    marks: dict[str, tuple[str, str]]
    gone: list[str]

    @classmethod
    def of(
        cls,
        states: Mapping[str, str],
        known: Collection[str],
        now: float,
        retention: float,
        tolerance: float,
    ) -> Tidying:
        """Judge ``states`` by the entries that the leader knows, and by the clock of Redis.

        The state of an entry that this leader does not know is removed if it is damaged, or if no
        leader has known the entry for ``retention`` seconds. If this leader is the first that does
        not know the entry, the state is marked with the time. A state that says that its entry ran
        more than ``tolerance`` seconds in the future is counted anew.
        """
        marks, gone = {}, []
        for entry, stored in states.items():
            sane = counted_anew(stored, now, tolerance)
            if entry in known:
                marks[entry] = stored, _without_mark(sane)
                continue
            state = _loaded(sane)
            since = None if state is None else state.get(_UNKNOWN_SINCE)
            if state is None:
                gone.append(entry)
            elif type(since) is not int or not 0 <= since <= now * 1000:
                # There is no mark yet, or none that a leader wrote.
                marks[entry] = stored, json.dumps({**state, _UNKNOWN_SINCE: int(now * 1000)})
            elif since <= (now - retention) * 1000:
                gone.append(entry)
        return cls({entry: each for entry, each in marks.items() if each[0] != each[1]}, gone)


def _without_mark(stored: str) -> str:
    if _UNKNOWN_SINCE not in stored:
        return stored
    state = _loaded(stored)
    if state is None or _UNKNOWN_SINCE not in state:
        return stored
    return json.dumps({field: value for field, value in state.items() if field != _UNKNOWN_SINCE})


def _loaded(stored: str) -> dict[str, Any] | None:
    try:
        state = json.loads(stored)
    except (ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None
