"""A lease store in memory: the semantics of the Lua scripts, line by line, in Python.

The contract suite and a differential test hold it to the scripts. The server's clock
is given to it, and tests can have it lose requests, replies and data.
"""

from __future__ import annotations

import copy
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from celery_leader.errors import StoreUnavailable
from celery_leader.lease import (
    Acquire,
    Announcement,
    Candidate,
    Granted,
    Missing,
    Record,
    Refused,
    Release,
    Released,
    Renew,
    Reply,
    Request,
    State,
)


@dataclass
class Row:
    """The record's hash. Milliseconds of the server's clock, as in Redis."""

    holder: str
    nonce: str
    attempt: int
    term: int
    expires_at: int
    lease: int
    state: str
    successor: str
    renewals: int
    transitions: int
    elected_at: int
    app: str
    event: str


@dataclass(frozen=True)
class Foremost:
    """Of the other live candidates: the first in line, its priority, and the lowest of any."""

    node: str
    highest: int
    lowest: int


class FakeStore:
    """An in-memory ``LeaseStore``.

    Args:
        server_clock: the server's wall clock, in seconds.
        history_size: how many lines of history each election keeps.
    """

    def __init__(self, server_clock: Callable[[], float], *, history_size: int = 256) -> None:
        self.server_clock = server_clock
        self.rows: dict[str, Row] = {}
        self.history: dict[str, list[Announcement]] = {}
        self._last_ids: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, dict[str, int]] = {}
        self._priorities: dict[str, dict[str, int]] = {}
        self._history_size = history_size
        self._requests_to_lose = 0
        self._replies_to_lose = 0

    # -- faults -----------------------------------------------------------------

    def lose_requests(self, count: int = 1) -> None:
        """The next ``count`` calls of ``perform`` do not arrive."""
        self._requests_to_lose = count

    def lose_replies(self, count: int = 1) -> None:
        """The next ``count`` calls of ``perform`` are executed, and nobody hears the answer."""
        self._replies_to_lose = count

    def drop(self, election: str) -> None:
        """Lose the record, as an eviction does; the history stays."""
        self.rows.pop(election, None)

    def flush(self) -> None:
        """Lose everything."""
        self.rows.clear()
        self.history.clear()
        self._last_ids.clear()
        self._seen.clear()
        self._priorities.clear()

    def copy_of(self, election: str) -> Row | None:
        """The record as a replica may have it."""
        return copy.copy(self.rows.get(election))

    def roll_back(self, election: str, row: Row | None) -> None:
        """Promote the replica that has ``row``."""
        if row is None:
            self.drop(election)
        else:
            self.rows[election] = copy.copy(row)

    # -- the protocol -------------------------------------------------------------

    def perform(self, requests: Sequence[Request]) -> list[Reply | StoreUnavailable]:
        """Answer ``requests`` in order, or lose them."""
        if self._requests_to_lose:
            self._requests_to_lose -= 1
            raise StoreUnavailable("the request was lost")
        replies: list[Reply | StoreUnavailable] = [self.answer(request) for request in requests]
        if self._replies_to_lose:
            self._replies_to_lose -= 1
            raise StoreUnavailable("the reply was lost")
        return replies

    def announcements(
        self, cursors: dict[str, str], timeout: float, wake: int
    ) -> list[Announcement]:
        """News past ``cursors``, waiting for it as ``XREAD BLOCK`` does."""
        deadline = time.monotonic() + timeout
        while True:
            news = self.news(cursors)
            if news or time.monotonic() >= deadline or select.select([wake], [], [], 0.002)[0]:
                return news

    def read(self, election: str) -> Record | None:
        """The record of ``election``."""
        row = self.rows.get(election)
        return None if row is None else self._record(row)

    def candidates(self, election: str) -> list[Candidate]:
        """Who asked or renewed lately, the latest first."""
        now = self.server_clock()
        seen = self._seen.get(election, {})
        latest_first = sorted(seen.items(), key=lambda item: (item[1], item[0]), reverse=True)
        priorities = self._priorities.get(election, {})
        return [
            Candidate(node, max(0.0, now - at / 1000), priorities.get(node, 0))
            for node, at in latest_first
        ]

    def close(self) -> None:
        """There is no connection to drop."""

    # -- what the scripts do ----------------------------------------------------------

    def news(self, cursors: dict[str, str]) -> list[Announcement]:
        """News past ``cursors``, without waiting."""
        return [
            line
            for election, cursor in cursors.items()
            for line in self.history.get(election, ())
            if _id(line.cursor) > _id(cursor)
        ]

    def answer(self, request: Request) -> Reply:
        """Execute ``request`` now."""
        match request:
            case Acquire():
                return self._acquire(request)
            case Renew():
                return self._renew(request)
            case Release():
                return self._release(request)

    def _acquire(self, request: Acquire) -> Reply:
        row = self.rows.get(request.election)
        self._note_seen(request, request.holder)
        term = row.term if row else 0
        if row is None or term < request.seen_term:
            if request.from_missing or request.live_term > term:
                return self._grant(request, row)
            return Missing(self._now())
        ours = row.nonce == request.nonce
        left = row.expires_at - self._now_ms()
        if ours and request.attempt <= row.attempt:
            return self._refusal(row)
        watched = request.watched == (term, row.renewals)
        silent = watched and request.silent
        if row.state == "released":
            return self._grant(request, row)
        if row.state == "reserved":
            if row.successor == request.holder or left <= 0 or silent:
                return self._grant(request, row)
            return self._refusal(row)
        if ours:
            if left <= 0 or term <= request.seen_term:
                return self._grant(request, row)
            row.renewals += request.attempt - row.attempt
            row.attempt = request.attempt
            row.expires_at = self._now_ms() + _ms(request.lease_duration)
            return Granted(row.term, row.event, self._now())
        if silent or (watched and left <= 0):
            return self._succeed(request, row)
        return self._refusal(row)

    def _succeed(self, request: Acquire, row: Row) -> Reply:
        best = self._foremost(request.election, request.holder, _ms(request.lease_duration))
        if best is None or best.highest <= request.priority:
            return self._grant(request, row)
        row.event = self._announce(request.election, "reserved", row.holder, row.term, best.node)
        row.renewals += 1
        row.state = "reserved"
        row.successor = best.node
        row.expires_at = self._now_ms() + _ms(request.reservation)
        return self._refusal(row)

    def _grant(self, request: Acquire, row: Row | None) -> Granted:
        now = self._now_ms()
        term = max((row.term if row else 0) + 1, request.seen_term + 1, self._now_us())
        event = self._announce(request.election, "elected", request.holder, term, "")
        self.rows[request.election] = Row(
            holder=request.holder,
            nonce=request.nonce,
            attempt=request.attempt,
            term=term,
            expires_at=now + _ms(request.lease_duration),
            lease=_ms(request.lease_duration),
            state="held",
            successor="",
            renewals=0,
            transitions=(row.transitions if row else 0) + 1,
            elected_at=now,
            app=request.app,
            event=event,
        )
        return Granted(term, event, self._now())

    def _renew(self, request: Renew) -> Reply:
        row = self.rows.get(request.election)
        if row is None:
            return Missing(self._now())
        if (
            row.nonce != request.nonce
            or row.term != request.term
            or row.state != "held"
            or row.expires_at <= self._now_ms()
            or request.attempt <= row.attempt
        ):
            return self._refusal(row)
        row.renewals += request.attempt - row.attempt
        row.attempt = request.attempt
        row.lease = _ms(request.lease_duration)
        row.expires_at = self._now_ms() + row.lease
        self._note_seen(request, row.holder)
        superior = None
        if request.preempted:
            best = self._foremost(request.election, row.holder, row.lease)
            if best is not None and best.highest > request.priority:
                superior = best.node
        return Granted(row.term, row.event, self._now(), superior)

    def _release(self, request: Release) -> Reply:
        row = self.rows.get(request.election)
        if row is None or row.nonce != request.nonce or request.attempt <= row.attempt:
            return Released(self._now())
        row.attempt = request.attempt
        if row.state == "held":
            successor = request.successor or ""
            best = self._foremost(request.election, row.holder, row.lease)
            if not successor and best is not None and best.highest > best.lowest:
                successor = best.node
            row.event = self._announce(
                request.election, "resigned", row.holder, row.term, successor
            )
            row.state = "reserved" if successor else "released"
            row.successor = successor
            reservation = _ms(request.reservation) if successor else 0
            row.expires_at = self._now_ms() + reservation
        return Released(self._now())

    def fenced_write(self, election: str, nonce: str, term: int) -> str:
        """Whether a dispatch in the name of ``term`` is ``accepted``, ``refused`` or ``missing``."""
        row = self.rows.get(election)
        if row is None or row.term < term:
            return "missing"
        ours = row.nonce == nonce and row.term == term
        held = row.state == "held" and row.expires_at > self._now_ms()
        return "accepted" if ours and held else "refused"

    # -- small parts ----------------------------------------------------------------

    def _note_seen(self, request: Acquire | Renew, node: str) -> None:
        seen = self._seen.setdefault(request.election, {})
        seen[node] = now = self._now_ms()
        self._priorities.setdefault(request.election, {})[node] = request.priority
        oldest = now - 3 * _ms(request.lease_duration)
        for other in [other for other, at in seen.items() if at <= oldest]:
            del seen[other]

    def _foremost(self, election: str, node: str, lease: int) -> Foremost | None:
        seen, priorities = self._seen.get(election, {}), self._priorities.get(election, {})
        if not any(priorities.get(each) for each in seen):
            return None
        oldest = self._now_ms() - 1.5 * lease
        others = [
            (priorities.get(each, 0), at, each)
            for each, at in seen.items()
            if each != node and at >= oldest
        ]
        if not others:
            return None
        highest, _, best = max(others)
        return Foremost(best, highest, min(others)[0])

    def _announce(self, election: str, kind: str, node: str, term: int, successor: str) -> str:
        millis, sequence = self._last_ids.get(election, (0, 0))
        now = self._now_ms()
        number = (now, 0) if now > millis else (millis, sequence + 1)
        self._last_ids[election] = number
        cursor = f"{number[0]}-{number[1]}"
        lines = self.history.setdefault(election, [])
        lines.append(Announcement(election, cursor, kind, node, term, successor or None))
        del lines[: -self._history_size]
        return cursor

    def _refusal(self, row: Row) -> Refused:
        return Refused(self._record(row), self._now())

    def _record(self, row: Row) -> Record:
        return Record(
            holder=row.holder,
            term=row.term,
            state=State(row.state),
            remaining=row.expires_at / 1000 - self._now(),
            lease_duration=row.lease / 1000,
            renewals=row.renewals,
            elected_at=row.elected_at / 1000,
            transitions=row.transitions,
            successor=row.successor or None,
            app=row.app,
            cursor=row.event,
        )

    def _now_us(self) -> int:
        return int(self.server_clock() * 1e6)

    def _now_ms(self) -> int:
        return self._now_us() // 1000

    def _now(self) -> float:
        return self._now_us() / 1e6


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _id(cursor: str) -> tuple[int, int]:
    millis, _, sequence = cursor.partition("-")
    return int(millis), int(sequence or 0)
