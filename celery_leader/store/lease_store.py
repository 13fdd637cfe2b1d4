"""Leases in Redis: one hash per election, judged by the server's clock.

The Python side of ``scripts``: what each is given, and what its answer means. Guaranteed:
whatever is in the keys, an answer is a value or ``StoreUnavailable`` with a sentence. Not
guaranteed: that Redis keeps the record; ``election.py`` says what a candidate makes of that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery_leader.core.candidate_info import read_candidate_info
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
    life_of,
)
from celery_leader.core.names import printable
from celery_leader.errors import LeaderError, StoreUnavailable
from celery_leader.store.register import Candidate

from .client import RedisClient, Script
from .history import PastLeadership, past_leaderships
from .scripts import (
    ACQUIRE,
    ASK,
    CANDIDATES,
    FORGET,
    FREE,
    HELD,
    HISTORY,
    HOLD,
    READ,
    RELEASE,
    RENEW,
    Keys,
)
from .wire import millis


@dataclass(frozen=True, slots=True)
class Survey:
    """All there is to see of one election.

    Attributes:
        record: who leads, or led last.
        candidates: who was heard of lately, the latest first.
        held: nodes that are kept out, and for how many seconds more.
        leaderships: who led, the latest first.
    """

    record: Record | None
    candidates: list[Candidate]
    held: dict[str, float]
    leaderships: list[PastLeadership]


class RedisLeaseStore:
    """The ``LeaseStore`` over a ``RedisClient``.

    Args:
        client: the connection; owned by the store from here on.
        keys: where to write.
        history_size: how many lines of history each election keeps.
        wait_replicas: how many replicas must have a lease before it counts as granted.
    """

    def __init__(
        self,
        client: RedisClient,
        keys: Keys,
        *,
        history_size: int = 256,
        wait_replicas: int = 0,
    ) -> None:
        self._client = client
        self._keys = keys
        self._history_size = history_size
        self._wait_replicas = wait_replicas

    def close(self) -> None:
        """Drop the connection; the next call makes another."""
        self._client.close()

    def perform(self, requests: Sequence[Request]) -> list[Reply | StoreUnavailable]:
        """Answer ``requests`` in one round trip; see ``LeaseStore``."""
        answers = self._client.run([self._call(request) for request in requests])
        replies = [
            answer if isinstance(answer, StoreUnavailable) else self._read_reply(request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]
        return self._believable(replies) if self._wait_replicas else replies

    def _believable(
        self, replies: list[Reply | StoreUnavailable]
    ) -> list[Reply | StoreUnavailable]:
        """``replies``, in which what too few replicas have is not granted but unknown."""
        if not any(isinstance(reply, Granted) for reply in replies):
            return replies
        try:
            self._client.wait_for_replicas(self._wait_replicas)
        except StoreUnavailable as exc:
            return [exc if isinstance(reply, Granted) else reply for reply in replies]
        return replies

    def announcements(
        self, cursors: dict[str, str], timeout: float, wake: int | None, patience: float = 1.0
    ) -> list[Announcement]:
        """Wait for news; see ``LeaseStore``."""
        names = {self._keys.of("history", name): name for name in cursors}
        reply = self._client.wait_for(
            ["XREAD", "BLOCK", max(1, int(timeout * 1000)), "STREAMS", *names, *cursors.values()],
            timeout,
            wake,
            patience,
        )
        return [
            _announcement(names[_text(key)], _text(cursor), fields)
            for key, entries in reply or ()
            for cursor, fields in entries
        ]

    def read(self, election: str) -> Record | None:
        """The record of ``election``, or ``None``.

        Raises:
            StoreUnavailable: Redis did not answer, or the record is damaged.
        """
        what, server_us, fields = self._run(READ, election)
        try:
            return None if what == b"missing" else _record(fields, int(server_us) / 1e6)
        except (ValueError, TypeError) as exc:
            raise self._damaged(election) from exc

    def candidates(self, election: str) -> list[Candidate]:
        """Who asked or renewed lately, the latest first.

        Raises:
            StoreUnavailable: Redis did not answer, or a key of the register is damaged.
        """
        return _candidates(self._run(CANDIDATES, election))

    # -- what people ask ------------------------------------------------------

    def survey(self, elections: Sequence[str], count: int) -> dict[str, Survey]:
        """All there is to see of ``elections``, in one round trip.

        Raises:
            StoreUnavailable: Redis did not answer, or a key is damaged.
        """
        # A leadership takes two lines, or some more where orders were given.
        calls: list[tuple[Script, Sequence[str], Sequence[Any]]] = []
        for name in elections:
            keys = self._keys.election(name)
            calls += [
                (HISTORY, keys, [8 * count + 1]),
                (CANDIDATES, keys, []),
                (HELD, keys, []),
            ]
        answers = self._client.run(calls)
        return {
            name: self._surveyed(name, count, answers[i : i + 3])
            for i, name in zip(range(0, len(answers), 3), elections, strict=True)
        }

    def _surveyed(self, election: str, count: int, answers: Sequence[Any]) -> Survey:
        for answer in answers:
            if isinstance(answer, StoreUnavailable):
                raise answer
        record, found = self._history(election, answers[0])
        return Survey(record, _candidates(answers[1]), _held_nodes(answers[2]), found[:count])

    def history(self, election: str, count: int) -> list[PastLeadership]:
        """The last ``count`` leaderships that are remembered, the latest first.

        Raises:
            StoreUnavailable: Redis did not answer, or a key is damaged.
        """
        most = max(self._history_size, 4 * count)
        _, found = self._history(election, self._run(HISTORY, election, [most]))
        return found[:count]

    def _history(
        self, election: str, answer: list[Any]
    ) -> tuple[Record | None, list[PastLeadership]]:
        what, server_us, fields, found = answer
        read_at = int(server_us) / 1e6
        record = None if what == b"missing" else _record(fields, read_at)
        lines = [_announcement(election, _text(cursor), flat) for cursor, flat in reversed(found)]
        return record, past_leaderships(lines, record, read_at)

    def ask(self, election: str, successor: str | None) -> Record:
        """Have the leader give way, to ``successor`` if one is named; the record as it is then.

        Raises:
            LeaderError: nobody leads, or the lease cannot go to ``successor``.
            StoreUnavailable: Redis did not answer.
        """
        reason = "transferred" if successor else "resigned"
        what, server_us, fields = self._run(
            ASK, election, [reason, successor or "", self._history_size]
        )
        if what != b"asked":
            why = _WHY_NOT[what].format(node=successor, election=election)
            raise LeaderError(f"{election}: {why}")
        return _record(fields, int(server_us) / 1e6)

    def hold(self, election: str, node: str, duration: float | None) -> bool:
        """Keep ``node`` out of the race, for ``duration`` seconds if given; whether it is known.

        A leader gives way as soon as what it does has come to an end.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        ms = 0 if duration is None else max(1, millis(duration))
        what, *_ = self._run(HOLD, election, [node, ms, self._history_size])
        return bool(what == b"candidate")

    def free(self, election: str, node: str) -> bool:
        """Let ``node`` into the race again; whether it was held.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        what, *_ = self._run(FREE, election, [node, self._history_size])
        return bool(what == b"freed")

    def held(self, election: str) -> dict[str, float]:
        """The nodes that are kept out, candidates or not, and for how many seconds more.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return _held_nodes(self._run(HELD, election))

    def forget(self, election: str, lease_duration: float) -> bool:
        """Remove all keys of ``election``; whether there were any.

        ``lease_duration``: that of the candidates that may have a part in it.

        Raises:
            LeaderError: a candidate was heard of within three leases, or the lease has not
                been over for one.
            StoreUnavailable: Redis did not answer.
        """
        what, *told = self._run(FORGET, election, [millis(lease_duration)])
        if what in _WHY_NOT_FORGOTTEN:
            who, ms = told
            why = _WHY_NOT_FORGOTTEN[what].format(who=_text(who), seconds=int(ms) / 1000)
            raise LeaderError(f"{election}: {why}")
        return bool(what == b"forgotten")

    # -- small parts ------------------------------------------------------------

    def _run(self, script: Script, election: str, args: Sequence[Any] = ()) -> list[Any]:
        answer = self._client.run([(script, self._keys.election(election), args)])[0]
        if isinstance(answer, StoreUnavailable):
            raise answer
        return list(answer)

    def _read_reply(self, request: Request, answer: list[Any]) -> Reply | StoreUnavailable:
        try:
            return _reply(answer)
        except (ValueError, TypeError):
            return self._damaged(request.election)

    def _damaged(self, election: str) -> StoreUnavailable:
        key = self._keys.of("election", election)
        return StoreUnavailable(
            f"the record in {key} is damaged; candidates write it anew within a lease;"
            " if there are none, delete that key"
        )

    def _call(self, request: Request) -> tuple[Script, list[str], list[Any]]:
        keys = self._keys.election(request.election)
        match request:
            case Acquire():
                watched_term, watched_renewals = request.watched or ("", "")
                return (
                    ACQUIRE,
                    keys,
                    [
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
                        self._history_size,
                        request.priority,
                        millis(request.reservation),
                        request.info,
                        *_ended(request.ended),
                        int(request.from_damaged),
                        int(request.abstains),
                    ],
                )
            case Renew():
                return (
                    RENEW,
                    keys,
                    [
                        request.nonce,
                        request.attempt,
                        request.term,
                        millis(request.lease_duration),
                        request.priority,
                        int(request.preempted),
                        request.info,
                    ],
                )
            case Release():
                return (
                    RELEASE,
                    keys,
                    [
                        request.holder,
                        request.nonce,
                        request.attempt,
                        request.successor or "",
                        millis(request.reservation),
                        self._history_size,
                        request.reason,
                        int(request.leaving),
                    ],
                )


def _ended(ended: Ended | None) -> list[Any]:
    return ["", "", ""] if ended is None else [ended.term, ended.reason, millis(ended.ago)]


_WHY_NOT = {
    b"unled": "nobody leads, so there is nobody to give way",
    b"leads": "{node} leads already",
    b"absent": (
        "{node} is no live candidate; `celery leader status --election {election}` lists them"
    ),
    b"held": "{node} is held; let it in first with `celery leader release {node}`",
}


_WHY_NOT_FORGOTTEN = {
    b"lives": "{who} takes part, heard of {seconds:.1f} s ago; a killed one is gone after 3 leases",
    b"kept": "the lease of {who} is not over; try again in {seconds:.1f} s",
}

_STATES = frozenset(state.value for state in State)
_CURSOR = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def _text(value: bytes | str | None) -> str:
    if isinstance(value, bytes):
        return printable(value.decode("utf-8", "replace"))
    return value or ""


def _reply(answer: list[Any]) -> Reply:
    what, server_us, fields, *told = answer
    server_time = int(server_us) / 1e6
    known = not told or told[0] == 1
    match what:
        case b"granted":
            record = _record(fields, server_time)
            renewed = len(told) > _OF_RENEWAL
            order = (
                StepDown(_text(told[1]), _text(told[2]) or None) if renewed and told[1] else None
            )
            return Granted(
                record.term, record.cursor, server_time, order, known, _namesake(told[-2:])
            )
        case b"refused":
            held = _seconds_held(told[1]) if told else None
            record = _record(fields, server_time)
            return Refused(record, server_time, held, known, _namesake(told[-2:]))
        case b"missing" | b"damaged":
            held = _seconds_held(told[1]) if told else None
            damaged = what == b"damaged"
            return Missing(server_time, held, known, _namesake(told[-2:]), damaged)
        case _:
            return Released(server_time)


#: So much is told with an answer to an acquire; a renewal's has one more.
_OF_RENEWAL = 4


def _namesake(told: list[Any]) -> Namesake | None:
    if not told or not told[0]:
        return None
    _, _, said = told[1].partition(b"|")
    info = read_candidate_info(said.decode("utf-8", "replace"))
    return Namesake(int(told[0]) / 1000, info.place if info else "")


def _seconds_held(ms: bytes) -> float | None:
    if not ms:
        return None
    return float("inf") if ms == b"-1" else int(ms) / 1000


def _record(fields: list[Any], server_time: float) -> Record:
    # The order is FIELDS in the scripts' preamble; the last is where the history ends.
    holder, nonce, attempt, term, expires_at, lease, state, successor, renewals = fields[:9]
    transitions, elected_at, app, event = fields[9:13]
    return Record(
        holder=_text(holder),
        term=int(term),
        state=_state(_text(state)),
        remaining=int(expires_at) / 1000 - server_time,
        lease_duration=int(lease) / 1000,
        renewals=int(renewals),
        elected_at=int(elected_at) / 1000,
        transitions=int(transitions),
        successor=_text(successor) or None,
        app=_text(app),
        cursor=_text(fields[-1]),
        event=event_id if _CURSOR.fullmatch(event_id := _text(event)) else "0-0",
        life=life_of(nonce.decode("utf-8", "surrogateescape")),
        attempt=int(attempt),
    )


def _state(text: str) -> State:
    # One of a later version: the script has seen to it that it is not had before its time.
    return State(text) if text in _STATES else State.TAKEN


def _announcement(election: str, cursor: str, fields: list[Any]) -> Announcement:
    # Whoever writes to Redis can write any line: one that makes no sense is of no kind.
    values = {_text(k): _text(v) for k, v in zip(fields[::2], fields[1::2], strict=False)}
    term, ended_at = values.get("term", ""), values.get("ended_at", "")
    return Announcement(
        election=election,
        cursor=cursor,
        kind=values.get("kind", "") if _is_number(term) else "",
        node=values.get("node", ""),
        term=int(term) if _is_number(term) else 0,
        successor=values.get("successor") or None,
        reason=values.get("reason") or None,
        ended_at=int(ended_at) / 1000 if _is_number(ended_at) else None,
        life=values.get("life", ""),
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 16


def _candidates(answer: list[Any]) -> list[Candidate]:
    server_us, *found = answer
    return [_candidate(int(server_us) / 1e6, *each) for each in found]


def _held_nodes(answer: list[Any]) -> dict[str, float]:
    _, *found = answer
    return {_text(node): _seconds_held(ms) or 0.0 for node, ms in found}


def _candidate(
    server_time: float, node: bytes, at: bytes, priority: bytes, held: bytes, info: bytes
) -> Candidate:
    ago = server_time - float(at) / 1000
    nonce, says, said = info.partition(b"|")
    return Candidate(
        node=_text(node),
        # A score can be anything that is a number, also infinity.
        seen_ago=max(0.0, min(ago, server_time)),
        priority=int(priority),
        held_for=_seconds_held(held),
        info=read_candidate_info(said.decode("utf-8", "replace")),
        life=life_of(nonce.decode("utf-8", "surrogateescape")) if says else "",
    )
