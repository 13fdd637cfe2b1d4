"""Turns requests into arguments of scripts, and answers into records and lines of history.

Whoever can write to Redis can write anything. Text is passed on as it stands there, and made safe
for a terminal where it is shown. An answer that makes no sense raises ``ValueError`` or
``TypeError``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from celery_leader.core.candidate_info import CandidateInfo, read_candidate_info
from celery_leader.core.lease import (
    Acquire,
    Announcement,
    Granted,
    Missing,
    Namesake,
    Record,
    Refused,
    Release,
    Released,
    Renew,
    Reply,
    Request,
    State,
    StepDown,
    life_of,
)

_STATES = frozenset(state.value for state in State)
_CURSOR = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def millis(seconds: float) -> int:
    """``seconds`` in milliseconds, as scripts are given durations."""
    return round(seconds * 1000)


def text(value: bytes | None) -> str:
    """``value`` as text, with a mark for what is not UTF-8."""
    return (value or b"").decode("utf-8", "replace")


def whole_number(value: str) -> int | None:
    """``value`` as a number; ``None`` if it is none, or longer than any number of ours."""
    return int(value) if value.isascii() and value.isdigit() and len(value) <= 16 else None


def exact(value: bytes) -> str:
    """``value`` as text from which ``as_stored`` makes the very same bytes."""
    return value.decode("utf-8", "surrogateescape")


def as_stored(value: str) -> bytes:
    """The bytes of which ``exact`` made ``value``."""
    return value.encode("utf-8", "surrogateescape")


def seconds_held(ms: bytes) -> float | None:
    """For how many seconds a node is held; infinity for ever, ``None`` if it is not."""
    if not ms:
        return None
    return float("inf") if ms == b"-1" else int(ms) / 1000


def info_and_life(value: bytes) -> tuple[CandidateInfo | None, str]:
    """What a life says of itself, and the life's public name; empty if it says nothing."""
    nonce, says, said = value.partition(b"|")
    info = read_candidate_info(said.decode("utf-8", "replace"))
    return info, life_of(exact(nonce)) if says else ""


# -- arguments of scripts -------------------------------------------------------------


def acquire_arguments(request: Acquire, history_size: int) -> list[Any]:
    """The arguments of ``acquire.lua``."""
    watched_term, watched_renewals = request.watched or ("", "")
    ended = request.ended
    return [
        request.holder,
        request.nonce,
        request.attempt,
        millis(request.lease_duration),
        request.seen_term,
        request.live_term,
        watched_term,
        watched_renewals,
        int(request.silent),
        int(request.from_missing),
        request.app,
        history_size,
        request.priority,
        millis(request.reservation),
        request.info,
        *(["", "", ""] if ended is None else [ended.term, ended.reason, millis(ended.ago)]),
        int(request.from_damaged),
        int(request.abstains),
    ]


def renew_arguments(request: Renew) -> list[Any]:
    """The arguments of ``renew.lua``."""
    return [
        request.nonce,
        request.attempt,
        request.term,
        millis(request.lease_duration),
        request.priority,
        int(request.preempted),
        request.info,
    ]


def release_arguments(request: Release, history_size: int) -> list[Any]:
    """The arguments of ``release.lua``."""
    return [
        request.holder,
        request.nonce,
        request.attempt,
        request.successor or "",
        millis(request.reservation),
        history_size,
        request.reason,
        int(request.leaving),
    ]


# -- answers of scripts ---------------------------------------------------------------


def read_reply(request: Request, answer: Sequence[Any]) -> Reply:
    """The reply to ``request`` in the answer of its script."""
    what, server_us, fields, *told = answer
    server_time = int(server_us) / 1e6
    if isinstance(request, Release):
        return Released(server_time)
    # A refused renewal is told nothing more.
    info_stored = not told or told[0] == 1
    namesake = _namesake(*told[-2:]) if told else None
    if what == b"granted":
        record = read_record(fields, server_time)
        step_down = _step_down(*told[1:3]) if isinstance(request, Renew) else None
        return Granted(record.term, record.cursor, server_time, step_down, info_stored, namesake)
    held_for = seconds_held(told[1]) if told else None
    if what == b"refused":
        record = read_record(fields, server_time)
        return Refused(record, server_time, held_for, info_stored, namesake)
    if what not in (b"missing", b"damaged"):
        raise ValueError(f"{what!r} is no answer")
    return Missing(server_time, held_for, info_stored, namesake, damaged=what == b"damaged")


def read_record(fields: Sequence[Any], server_time: float) -> Record:
    """A record; the order of the fields is ``FIELDS`` in ``record.lua``."""
    holder, nonce, attempt, term, expires_at, lease, state, successor, renewals = fields[:9]
    transitions, elected_at, app, event = fields[9:13]
    return Record(
        holder=text(holder),
        term=int(term),
        state=_state(text(state)),
        remaining=int(expires_at) / 1000 - server_time,
        lease_duration=int(lease) / 1000,
        renewals=int(renewals),
        elected_at=int(elected_at) / 1000,
        transitions=int(transitions),
        successor=text(successor) or None,
        app=text(app),
        cursor=text(fields[-1]),
        event=event_id if _CURSOR.fullmatch(event_id := text(event)) else "0-0",
        life=life_of(exact(nonce)),
        attempt=int(attempt),
    )


def read_announcement(election: str, cursor: bytes, fields: Sequence[Any]) -> Announcement:
    """One line of history; the kind of a line that makes no sense is empty."""
    values = {text(k): text(v) for k, v in zip(fields[::2], fields[1::2], strict=False)}
    term = whole_number(values.get("term", ""))
    ended_at = whole_number(values.get("ended_at", ""))
    return Announcement(
        election=election,
        cursor=text(cursor),
        kind="" if term is None else values.get("kind", ""),
        node=values.get("node", ""),
        term=term or 0,
        successor=values.get("successor") or None,
        reason=values.get("reason") or None,
        ended_at=None if ended_at is None else ended_at / 1000,
        life=values.get("life", ""),
    )


def _state(name: str) -> State:
    # A state of a later version: ``load()`` in record.lua lets nobody take it before it runs out.
    return State(name) if name in _STATES else State.TAKEN


def _step_down(reason: bytes, successor: bytes) -> StepDown | None:
    return StepDown(text(reason), text(successor) or None) if reason else None


def _namesake(heard_at: bytes, said: bytes) -> Namesake | None:
    if not heard_at:
        return None
    info, _ = info_and_life(said)
    return Namesake(int(heard_at) / 1000, info.place if info else "")
