"""A lease store in memory: the Lua scripts, line by line, in Python.

The contract suite and a differential test compare it with the scripts. A test gives it the
server's clock, and can have it lose requests, replies and data.
"""

from __future__ import annotations

import copy
import dataclasses
import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from celery_leader.core.candidate_info import read_candidate_info
from celery_leader.core.events import AT_ONCE
from celery_leader.core.lease import (
    Acquire,
    Announcement,
    Ended,
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
    latest_term,
    life_of,
)
from celery_leader.errors import LeaderError, StoreUnavailable
from celery_leader.store.history import PastLeadership, past_leaderships
from celery_leader.store.register import Candidate

#: In place of a priority.
ABSTAINS = -1001

#: The most lives of one node that the register tells apart, and what is between name and number.
MOST_LIVES, SEPARATOR = 5, "\x1f"


@dataclass
class Row:
    """The hash of the record. Times are milliseconds of the server's clock, as in Redis."""

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
    asked: str = ""
    asked_for: str = ""
    #: Stands for any value that no candidate can have written.
    damaged: bool = False


@dataclass(frozen=True)
class Foremost:
    """Of the other live candidates: the first in line, its priority, and the lowest priority."""

    node: str
    highest: int
    lowest: int


def _can_be_read(fd: int | None, timeout: float) -> bool:
    """Whether there is something to read from ``fd``, waiting for it for ``timeout`` seconds."""
    with selectors.DefaultSelector() as selector:
        if fd is not None:
            selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(timeout))


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
        self._held: dict[str, dict[str, int]] = {}
        self._info: dict[str, dict[str, tuple[str, str]]] = {}
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
        self._held.clear()
        self._info.clear()

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
        self, cursors: dict[str, str], timeout: float, wake: int | None, patience: float = 1.0
    ) -> list[Announcement]:
        """News past ``cursors``, waiting for it as ``XREAD BLOCK`` does."""
        deadline = time.monotonic() + timeout
        while True:
            news = self.news(cursors)
            if news or _can_be_read(wake, 0.002) or time.monotonic() >= deadline:
                return news

    def read(self, election: str) -> Record | None:
        """The record of ``election``."""
        row = self._shown(election)
        return None if row is None else self._record(election, row)

    @property
    def register(self) -> FakeStore:
        """The register is kept in the same object."""
        return self

    def candidates(self, election: str) -> list[Candidate]:
        """Who asked or renewed lately, the latest first."""
        now = self.server_clock()
        seen = self._seen.get(election, {})
        latest_first = sorted(seen.items(), key=lambda item: (item[1], item[0]), reverse=True)
        priorities = self._priorities.get(election, {})
        return [
            Candidate(
                _node_of(place),
                max(0.0, now - at / 1000),
                _shown(priorities.get(place, 0)),
                self._held_for(election, _node_of(place)),
                read_candidate_info(self._info.get(election, {}).get(place, ("", ""))[1]),
                self._life_at(election, place),
            )
            for place, at in latest_first
        ]

    def history_of(self, election: str, count: int) -> list[PastLeadership]:
        """The last ``count`` leaderships, the latest first."""
        lines = self.history.get(election, [])
        return past_leaderships(lines, self.read(election), self._now())[:count]

    def ask(self, election: str, successor: str | None, *, at_once: bool = False) -> Record:
        """Have the leader step down, to ``successor`` if one is named."""
        row = self._shown(election)
        if row is None or row.state != "held" or row.expires_at <= self._now_ms():
            raise LeaderError("nobody leads")
        if successor:
            if successor == row.holder:
                raise LeaderError("leads already")
            if self._lives(election, successor, row.lease) is None:
                raise LeaderError("is no live candidate")
            if self._held_for(election, successor) is not None:
                raise LeaderError("is held")
        row.asked, row.asked_for = "transferred" if successor else "resigned", successor or ""
        row.asked += AT_ONCE if at_once else ""
        row.event = self._announce(
            election,
            "asked",
            row.holder,
            row.term,
            successor,
            reason=row.asked,
            nonce=row.nonce,
        )
        return self._record(election, row)

    def hold(
        self, election: str, node: str, duration: float | None, *, at_once: bool = False
    ) -> bool:
        """Keep ``node`` out of the race, for ``duration`` seconds if given; whether it is known."""
        till = 0 if duration is None else self._now_ms() + max(1, _ms(duration))
        self._held.setdefault(election, {})[node] = till
        row = None if self._is_damaged(election) else self.rows.get(election)
        leads = row and row.holder == node and row.state == "held"
        if at_once and row and leads and row.expires_at > self._now_ms():
            row.asked, row.asked_for = f"held{AT_ONCE}", ""
        self._announce(election, "held", node, self._term(election))
        return node in self._seen.get(election, {})

    def free(self, election: str, node: str) -> bool:
        """Let ``node`` into the race again; whether it was held."""
        was_held = self._held_for(election, node) is not None
        self._held.get(election, {}).pop(node, None)
        if was_held:
            self._announce(election, "freed", node, self._term(election))
        return was_held

    def held(self, election: str) -> dict[str, float]:
        """The nodes that are kept out, and for how many seconds more."""
        left = {node: self._held_for(election, node) for node in self._held.get(election, {})}
        return {node: seconds for node, seconds in left.items() if seconds is not None}

    def forget(self, election: str, lease_duration: float) -> bool:
        """Remove all that is kept of ``election``; whether there was anything."""
        now, row = self._now_ms(), self._sound(election)
        lease = max(row.lease if row else 0, _ms(lease_duration))
        if any(abs(now - at) <= 3 * lease for at in self._seen.get(election, {}).values()):
            raise LeaderError("takes part")
        if row is not None and row.state != "released" and row.expires_at - now > -lease:
            raise LeaderError("is not over")
        kept = (self.rows, self.history, self._seen, self._priorities, self._held, self._info)
        found = [each.pop(election, None) for each in kept]  # type: ignore[attr-defined]
        return any(each is not None for each in found)

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
        damaged, row = self._is_damaged(request.election), self._sound(request.election)
        if request.seen_term > latest_term(self._now()):
            request = dataclasses.replace(request, seen_term=0)
        held = None if request.live_term else self._held_for(request.election, request.holder)
        place = self._note_seen(request, request.holder)
        if request.ended is not None:
            self._tell(request, request.ended)
        known = self._known(request.election, place, request.nonce)
        namesake = self._namesake(request.election, place, _ms(request.lease_duration))
        term = row.term if row else 0
        if damaged:
            may = request.from_damaged or request.live_term
            if held is None and may and not request.abstains:
                return self._grant(request, row)
            return Missing(self._now(), held, known, namesake, damaged=True)
        if row is None or term < request.seen_term:
            if request.abstains:
                return Missing(self._now(), held, known, namesake)
            if held is None and (request.from_missing or request.live_term > term):
                return self._grant(request, row)
            return Missing(self._now(), held, known, namesake)
        ours = row.nonce == request.nonce
        left = row.expires_at - self._now_ms()
        watched = request.watched == (term, row.renewals)
        silent = watched and request.silent
        refusal = dataclasses.replace(
            self._refusal(request.election, row),
            held_for=held,
            info_stored=known,
            namesake=namesake,
        )
        overtaken = ours and request.attempt <= row.attempt
        if overtaken or held is not None or request.abstains:
            return refusal
        if row.state == "released":
            return self._grant(request, row)
        if row.state == "reserved":
            if row.successor == request.holder or left <= 0 or silent:
                return self._grant(request, row)
            return refusal
        if ours:
            if left <= 0 or term <= request.seen_term:
                return self._grant(request, row)
            row.renewals += request.attempt - row.attempt
            row.attempt = request.attempt
            row.expires_at = self._now_ms() + _ms(request.lease_duration)
            tail = self._tail(request.election)
            return Granted(row.term, tail, self._now(), info_stored=known, namesake=namesake)
        if silent or (watched and left <= 0):
            return self._succeed(request, row, refusal)
        return refusal

    def _succeed(self, request: Acquire, row: Row, refusal: Refused) -> Reply:
        best = self._foremost(request.election, request.holder, _ms(request.lease_duration))
        if best is None or best.highest <= request.priority:
            return self._grant(request, row)
        row.event = self._announce(
            request.election,
            "reserved",
            row.holder,
            row.term,
            best.node,
            ended_at=min(row.expires_at, self._now_ms()) / 1000,
            nonce=row.nonce,
        )
        row.renewals += 1
        row.state = "reserved"
        row.successor = best.node
        row.expires_at = self._now_ms() + _ms(request.reservation)
        return dataclasses.replace(refusal, record=self._record(request.election, row))

    def _tell(self, request: Acquire, ended: Ended) -> None:
        lines = self.history.get(request.election, [])
        if any(line.kind == "ended" and line.term == ended.term for line in lines[-20:]):
            return
        self._announce(
            request.election,
            "ended",
            request.holder,
            ended.term,
            reason=ended.reason,
            ended_at=(self._now_ms() - _ms(ended.ago)) / 1000,
            nonce=request.nonce,
        )

    def _grant(self, request: Acquire, row: Row | None) -> Granted:
        now = self._now_ms()
        term = max((row.term if row else 0) + 1, request.seen_term + 1, self._now_us())
        expired = row is not None and row.term >= request.seen_term and row.state == "held"
        lost = row is None or row.term < request.seen_term
        event = self._announce(
            request.election,
            "elected",
            request.holder,
            term,
            reason="record lost" if lost else "expired" if expired else None,
            ended_at=min(row.expires_at, now) / 1000 if expired and row is not None else None,
            nonce=request.nonce,
        )
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
        place = self._place_of(request.election, request.holder, request.nonce)
        known = self._known(request.election, place, request.nonce)
        namesake = self._namesake(request.election, place, _ms(request.lease_duration))
        return Granted(term, event, self._now(), info_stored=known, namesake=namesake)

    def _renew(self, request: Renew) -> Reply:
        row = self._sound(request.election)
        if row is None:
            return Missing(self._now(), damaged=self._is_damaged(request.election))
        if (
            row.nonce != request.nonce
            or row.term != request.term
            or row.state != "held"
            or row.expires_at <= self._now_ms()
            or request.attempt <= row.attempt
        ):
            return self._refusal(request.election, row)
        row.renewals += request.attempt - row.attempt
        row.attempt = request.attempt
        row.lease = _ms(request.lease_duration)
        row.expires_at = self._now_ms() + row.lease
        place = self._note_seen(request, row.holder)
        order = None
        if row.asked:
            order = StepDown(row.asked, row.asked_for or None)
        elif self._held_for(request.election, row.holder) is not None:
            order = StepDown("held", None)
        elif request.preempted:
            best = self._foremost(request.election, row.holder, row.lease)
            if best is not None and best.highest > request.priority:
                order = StepDown("outranked", best.node)
        known = self._known(request.election, place, request.nonce)
        namesake = self._namesake(request.election, place, row.lease)
        tail = self._tail(request.election)
        return Granted(row.term, tail, self._now(), order, known, namesake)

    def _release(self, request: Release) -> Reply:
        election, node = request.election, request.holder
        if request.leaving:
            self._leave(election, node, request.nonce)
        row = self._sound(election)
        if row is None or row.nonce != request.nonce or request.attempt <= row.attempt:
            return Released(self._now())
        row.attempt = request.attempt
        if row.state == "held":
            successor = request.successor or ""
            if not successor or self._held_for(election, successor) is not None:
                best = self._foremost(election, row.holder, row.lease)
                successor = best.node if best is not None and best.highest > best.lowest else ""
            row.event = self._announce(
                election,
                "resigned",
                row.holder,
                row.term,
                successor,
                reason=request.reason,
                nonce=row.nonce,
            )
            row.state = "reserved" if successor else "released"
            row.successor = successor
            reservation = _ms(request.reservation) if successor else 0
            row.expires_at = self._now_ms() + reservation
        return Released(self._now())

    def fenced_write(self, election: str, nonce: str, term: int) -> str:
        """Whether a dispatch in the name of ``term`` is ``accepted``, ``refused`` or ``missing``."""
        row = self._sound(election)
        if row is None or row.term < term:
            return "missing"
        ours = row.nonce == nonce and row.term == term
        held = row.state == "held" and row.expires_at > self._now_ms()
        return "accepted" if ours and held else "refused"

    # -- small parts ----------------------------------------------------------------

    def _is_damaged(self, election: str) -> bool:
        row = self.rows.get(election)
        return row is not None and (row.damaged or row.term > latest_term(self._now()))

    def _sound(self, election: str) -> Row | None:
        """The record, if it makes sense."""
        return None if self._is_damaged(election) else self.rows.get(election)

    def _shown(self, election: str) -> Row | None:
        if self._is_damaged(election):
            raise StoreUnavailable("the record is damaged")
        return self.rows.get(election)

    def _note_seen(self, request: Acquire | Renew, node: str) -> str:
        election, lease = request.election, _ms(request.lease_duration)
        place, own = self._take_place(election, node, request.nonce, lease, bool(request.info))
        seen = self._seen.setdefault(election, {})
        seen[place] = now = self._now_ms()
        abstains = isinstance(request, Acquire) and request.abstains
        self._priorities.setdefault(election, {})[place] = (
            ABSTAINS if abstains else request.priority
        )
        info = self._info.setdefault(election, {})
        if request.info or (not own and (place != node or place in info)):
            info[place] = request.nonce, request.info
        for other in [other for other, at in seen.items() if abs(now - at) >= 3 * lease]:
            self._forget(election, other)
        return place

    def _owner(self, election: str, place: str) -> str | None:
        kept = self._info.get(election, {}).get(place)
        return None if kept is None else kept[0]

    def _place_of(self, election: str, node: str, nonce: str) -> str:
        own = [p for p in _places(node) if self._owner(election, p) == nonce]
        return own[0] if own else node

    def _take_place(
        self, election: str, node: str, nonce: str, lease: int, new: bool
    ) -> tuple[str, bool]:
        """The place of a life, and whether it is its own already. New: it says what it is."""
        places = _places(node)
        own = next((p for p in places if self._owner(election, p) == nonce), None)
        if own == node or (own is None and new):
            return node, own == node
        if own is None and self._owner(election, node) is None:
            return node, False
        for place in places[: places.index(own) if own else MOST_LIVES - 1]:
            if self._lives(election, place, lease) is None:
                if own is not None:
                    self._forget(election, own)
                return place, False
        return own or places[-1], own is not None

    def _lives(self, election: str, place: str, lease: int) -> int | None:
        at = self._seen.get(election, {}).get(place)
        now = self._now_ms()
        return at if at is not None and now - 1.5 * lease <= at <= now + 3 * lease else None

    def _namesake(self, election: str, place: str, lease: int) -> Namesake | None:
        node = _node_of(place)
        other = _places(node)[1] if place == node else node
        at = self._lives(election, other, lease)
        if at is None:
            return None
        info = read_candidate_info(self._info.get(election, {}).get(other, ("", ""))[1])
        return Namesake(at / 1000, info.place if info else "")

    def _life_at(self, election: str, place: str) -> str:
        nonce = self._owner(election, place)
        return "" if nonce is None else life_of(nonce)

    def _leave(self, election: str, node: str, nonce: str) -> None:
        for place in _places(node):
            owner = self._owner(election, place)
            if owner == nonce or (place == node and owner is None):
                self._forget(election, place)
                return

    def _forget(self, election: str, place: str) -> None:
        for register in (self._seen, self._priorities, self._info):
            register.get(election, {}).pop(place, None)  # type: ignore[attr-defined]

    def _known(self, election: str, place: str, nonce: str) -> bool:
        owner, said = self._info.get(election, {}).get(place, ("", ""))
        return owner == nonce and bool(said)

    def _held_for(self, election: str, node: str) -> float | None:
        till = self._held.get(election, {}).get(node)
        if till is None:
            return None
        left = till - self._now_ms() if till else float("inf")
        return left / 1000 if left > 0 else None

    def _term(self, election: str) -> int:
        row = self._sound(election)
        return row.term if row else 0

    def _foremost(self, election: str, node: str, lease: int) -> Foremost | None:
        seen, priorities = self._seen.get(election, {}), self._priorities.get(election, {})
        if not any(priorities.get(each) for each in seen):
            return None
        others = [
            (priorities.get(place, 0), at, _node_of(place))
            for place, at in seen.items()
            if _node_of(place) != node
            and priorities.get(place) != ABSTAINS
            and self._lives(election, place, lease) is not None
            and self._held_for(election, _node_of(place)) is None
        ]
        if not others:
            return None
        highest, _, best = max(others)
        return Foremost(best, highest, min(others)[0])

    def _announce(
        self,
        election: str,
        kind: str,
        node: str,
        term: int,
        successor: str | None = None,
        *,
        reason: str | None = None,
        ended_at: float | None = None,
        nonce: str | None = None,
    ) -> str:
        millis, sequence = self._last_ids.get(election, (0, 0))
        now = self._now_ms()
        number = (now, 0) if now > millis else (millis, sequence + 1)
        self._last_ids[election] = number
        cursor = f"{number[0]}-{number[1]}"
        lines = self.history.setdefault(election, [])
        life = "" if nonce is None else life_of(nonce)
        lines.append(
            Announcement(
                election, cursor, kind, node, term, successor or None, reason, ended_at, life
            )
        )
        del lines[: -self._history_size]
        return cursor

    def _tail(self, election: str) -> str:
        lines = self.history.get(election)
        return lines[-1].cursor if lines else "0-0"

    def _refusal(self, election: str, row: Row) -> Refused:
        return Refused(self._record(election, row), self._now())

    def _record(self, election: str, row: Row) -> Record:
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
            cursor=self._tail(election),
            event=row.event,
            life=life_of(row.nonce),
            attempt=row.attempt,
        )

    def _now_us(self) -> int:
        return int(self.server_clock() * 1e6)

    def _now_ms(self) -> int:
        return self._now_us() // 1000

    def _now(self) -> float:
        return self._now_us() / 1e6


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _places(node: str) -> list[str]:
    return [node, *(f"{node}{SEPARATOR}{number}" for number in range(2, MOST_LIVES + 1))]


def _node_of(place: str) -> str:
    return place.partition(SEPARATOR)[0]


def _id(cursor: str) -> tuple[int, int]:
    millis, _, sequence = cursor.partition("-")
    return int(millis), int(sequence or 0)


def _shown(priority: int) -> int:
    """Who abstains has none."""
    return priority if abs(priority) <= 1000 else 0
