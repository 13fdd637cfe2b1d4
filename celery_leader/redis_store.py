"""Leases in Redis: one hash per election, judged by the server's clock.

Guaranteed: every verb is one script, so it happens whole or not at all, and asking
again after a lost reply gives the same answer. A record has no TTL, because the
``volatile-*`` policies evict keys that have one first. Not guaranteed: that Redis
keeps the record (eviction, a flush, a replica that lagged); ``election.py`` says
what a candidate makes of that.

Keys, which are public (``{namespace}`` is ``leader_namespace``):

=====================================================  =========================================
``celery-leader:{namespace}:election:{name}``          hash, the record
``celery-leader:{namespace}:history:{name}``           stream, who was elected and who resigned
``celery-leader:{namespace}:candidates:{name}``        sorted set, node by last contact in ms
``celery-leader:{namespace}:priorities:{name}``        hash, node to its priority, unless that is 0
=====================================================  =========================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import StoreUnavailable
from .lease import (
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
from .redis_client import RedisClient, Script

# Every script answers {what, server time in us, the record's fields ...}.
PREAMBLE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = time[1] * 1000000 + time[2]
local FIELDS = {'holder', 'nonce', 'attempt', 'term', 'expires_at', 'lease', 'state', 'successor',
                'renewals', 'transitions', 'elected_at', 'app', 'event'}
local function load()
  local values, record = redis.call('HMGET', KEYS[1], unpack(FIELDS)), {}
  for i, field in ipairs(FIELDS) do record[field] = values[i] end
  record.left = (tonumber(record.expires_at) or 0) - now
  return record
end
local function answer(what)
  -- '%.0f', because tostring() would print a term as 1.79e+15.
  return {what, string.format('%.0f', micros), redis.call('HMGET', KEYS[1], unpack(FIELDS))}
end
"""

# KEYS[3] candidates, KEYS[4] priorities
_CANDIDATES = """
local function seen(node, lease, priority)
  redis.call('ZADD', KEYS[3], now, node)
  if tonumber(priority) == 0 then
    redis.call('HDEL', KEYS[4], node)
  else
    redis.call('HSET', KEYS[4], node, priority)
  end
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - 3 * lease)) do
    redis.call('ZREM', KEYS[3], gone)
    redis.call('HDEL', KEYS[4], gone)
  end
  redis.call('PEXPIRE', KEYS[3], 3 * lease)
  redis.call('PEXPIRE', KEYS[4], 3 * lease)
end
-- Of the others heard of lately: who has the highest priority, that, and the lowest of any.
local function foremost(node, lease)
  if redis.call('EXISTS', KEYS[4]) == 0 then return nil end
  local best, highest, lowest
  local live = redis.call('ZREVRANGEBYSCORE', KEYS[3], '+inf', now - 1.5 * lease)
  for _, each in ipairs(live) do
    if each ~= node then
      local priority = tonumber(redis.call('HGET', KEYS[4], each)) or 0
      if not highest or priority > highest then best, highest = each, priority end
      if not lowest or priority < lowest then lowest = priority end
    end
  end
  return best, highest, lowest
end
local function announce(kind, node, term, successor, history_size)
  return redis.call('XADD', KEYS[2], 'MAXLEN', history_size, '*', 'kind', kind,
                    'node', node, 'term', term, 'successor', successor)
end
"""

# KEYS record history candidates priorities
# ARGV holder nonce attempt lease_ms seen_term live_term watched_term watched_renewals
#      silent from_missing app history_size priority reservation_ms
# -> granted | refused | missing
_ACQUIRE = (
    PREAMBLE
    + _CANDIDATES
    + """
local holder, nonce, attempt, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local seen_term, live_term = tonumber(ARGV[5]), tonumber(ARGV[6])
local from_missing = ARGV[10] == '1'
local record = load()
local term = tonumber(record.term) or 0
local ours = record.nonce == nonce
seen(holder, lease, ARGV[13])

local function grant()
  local fresh = string.format('%.0f', math.max(term + 1, seen_term + 1, micros))
  local event = announce('elected', holder, fresh, '', ARGV[12])
  redis.call('HSET', KEYS[1], 'holder', holder, 'nonce', nonce, 'attempt', attempt, 'term', fresh,
             'expires_at', string.format('%.0f', now + lease), 'lease', lease, 'state', 'held',
             'successor', '', 'renewals', 0, 'elected_at', string.format('%.0f', now),
             'app', ARGV[11], 'event', event)
  redis.call('HINCRBY', KEYS[1], 'transitions', 1)
  return answer('granted')
end

-- A lease that is over goes to who asks, unless a candidate of higher priority is there.
local function succeed()
  local best, highest = foremost(holder, lease)
  if not best or highest <= tonumber(ARGV[13]) then return grant() end
  local event = announce('reserved', record.holder, record.term, best, ARGV[12])
  -- One renewal more: who watched this lease is to watch it anew.
  redis.call('HINCRBY', KEYS[1], 'renewals', 1)
  redis.call('HSET', KEYS[1], 'state', 'reserved', 'successor', best, 'event', event,
             'expires_at', string.format('%.0f', now + ARGV[14]))
  return answer('refused')
end

if not record.term or term < seen_term then
  -- Gone, or older than what this candidate knows: no evidence of anything.
  if from_missing or live_term > term then return grant() end
  return answer('missing')
end
if ours and attempt <= tonumber(record.attempt) then
  return answer('refused')  -- overtaken by a later request of the same candidate
end
if record.state == 'released' then return grant() end
local watched = tonumber(ARGV[7]) == term and ARGV[8] == record.renewals
local silent = watched and ARGV[9] == '1'
if record.state == 'reserved' then
  if record.successor == holder or record.left <= 0 or silent then return grant() end
  return answer('refused')
end
if ours then
  -- Never kept for another: it may lead still, on a lease that the server's clock ran ahead of.
  if record.left <= 0 or term <= seen_term then return grant() end
  -- Granted before, and the reply was lost.
  redis.call('HSET', KEYS[1], 'attempt', attempt, 'expires_at', string.format('%.0f', now + lease))
  redis.call('HINCRBY', KEYS[1], 'renewals', attempt - record.attempt)
  return answer('granted')
end
if silent or (watched and record.left <= 0) then return succeed() end
return answer('refused')
"""
)

# KEYS record history candidates priorities
# ARGV nonce attempt term lease_ms priority preempted
# -> granted, with a candidate of higher priority if preempted | refused | missing
_RENEW = (
    PREAMBLE
    + _CANDIDATES
    + """
local record = load()
if not record.term then return answer('missing') end
if record.nonce ~= ARGV[1] or tonumber(record.term) ~= tonumber(ARGV[3])
   or record.state ~= 'held' or record.left <= 0
   or tonumber(ARGV[2]) <= tonumber(record.attempt) then
  return answer('refused')
end
redis.call('HSET', KEYS[1], 'attempt', ARGV[2], 'lease', ARGV[4],
           'expires_at', string.format('%.0f', now + ARGV[4]))
-- By the number of the request: an old copy that is renewed never says again what it said once.
redis.call('HINCRBY', KEYS[1], 'renewals', ARGV[2] - record.attempt)
seen(record.holder, tonumber(ARGV[4]), ARGV[5])
local reply = answer('granted')
if ARGV[6] == '1' then
  local best, highest = foremost(record.holder, tonumber(ARGV[4]))
  if best and highest > tonumber(ARGV[5]) then reply[4] = best end
end
return reply
"""
)

# KEYS record history candidates priorities
# ARGV nonce attempt successor reservation_ms history_size
# -> released
_RELEASE = (
    PREAMBLE
    + _CANDIDATES
    + """
local record = load()
if record.nonce ~= ARGV[1] or tonumber(ARGV[2]) <= tonumber(record.attempt) then
  return answer('released')
end
redis.call('HSET', KEYS[1], 'attempt', ARGV[2])
if record.state == 'held' then
  local successor = ARGV[3]
  if successor == '' then
    local best, highest, lowest = foremost(record.holder, tonumber(record.lease))
    if best and highest > lowest then successor = best end
  end
  local event = announce('resigned', record.holder, record.term, successor, ARGV[5])
  redis.call('HSET', KEYS[1], 'state', successor == '' and 'released' or 'reserved',
             'successor', successor, 'event', event,
             'expires_at', string.format('%.0f', now + (successor == '' and 0 or ARGV[4])))
end
return answer('released')
"""
)

# KEYS record
# -> record | missing
_READ = PREAMBLE + "return answer(redis.call('EXISTS', KEYS[1]) == 1 and 'record' or 'missing')"


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of the keys of one namespace, with the broker's key prefix in front, once."""

    namespace: str
    prefix: str = ""

    def of(self, kind: str, name: str) -> str:
        """The key that keeps the ``kind`` of thing called ``name``."""
        return f"{self.prefix}celery-leader:{self.namespace}:{kind}:{name}"

    def election(self, name: str) -> list[str]:
        """The keys every script on an election is given."""
        kinds = ("election", "history", "candidates", "priorities")
        return [self.of(kind, name) for kind in kinds]


ACQUIRE, RENEW, RELEASE, READ = Script(_ACQUIRE), Script(_RENEW), Script(_RELEASE), Script(_READ)


class RedisStore:
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
        self, cursors: dict[str, str], timeout: float, wake: int
    ) -> list[Announcement]:
        """Wait for news; see ``LeaseStore``."""
        names = {self._keys.of("history", name): name for name in cursors}
        millis = max(1, int(timeout * 1000))
        reply = self._client.wait_for(
            ["XREAD", "BLOCK", millis, "STREAMS", *names, *cursors.values()], timeout, wake
        )
        return [
            _announcement(names[_text(key)], _text(cursor), fields)
            for key, entries in reply or ()
            for cursor, fields in entries
        ]

    def read(self, election: str) -> Record | None:
        """The record of ``election``, or ``None``.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        answer = self._client.run([(READ, [self._keys.of("election", election)], [])])[0]
        if isinstance(answer, StoreUnavailable):
            raise answer
        what, server_us, fields = answer
        try:
            return None if what == b"missing" else _record(fields, int(server_us) / 1e6)
        except (ValueError, TypeError) as exc:
            raise self._damaged(election) from exc

    def candidates(self, election: str) -> list[Candidate]:
        """Who asked or renewed lately, the latest first.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        _, _, candidates, priorities = self._keys.election(election)
        (seconds, micros), members, flat = _answered(
            self._client.call_all(
                [
                    ["TIME"],
                    ["ZREVRANGE", candidates, 0, -1, "WITHSCORES"],
                    ["HGETALL", priorities],
                ]
            )
        )
        now = int(seconds) + int(micros) / 1e6
        priority = dict(zip(flat[::2], flat[1::2], strict=True))
        return [
            Candidate(_text(node), max(0.0, now - float(at) / 1000), int(priority.get(node, 0)))
            for node, at in zip(members[::2], members[1::2], strict=True)
        ]

    def _read_reply(self, request: Request, answer: list[Any]) -> Reply | StoreUnavailable:
        try:
            return _reply(answer)
        except (ValueError, TypeError):
            return self._damaged(request.election)

    def _damaged(self, election: str) -> StoreUnavailable:
        key = self._keys.of("election", election)
        return StoreUnavailable(f"the record in {key} is damaged; delete that key")

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
                        _ms(request.lease_duration),
                        request.seen_term,
                        request.live_term,
                        watched_term,
                        watched_renewals,
                        int(request.silent),
                        int(request.from_missing),
                        request.app,
                        self._history_size,
                        request.priority,
                        _ms(request.reservation),
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
                        _ms(request.lease_duration),
                        request.priority,
                        int(request.preempted),
                    ],
                )
            case Release():
                return (
                    RELEASE,
                    keys,
                    [
                        request.nonce,
                        request.attempt,
                        request.successor or "",
                        _ms(request.reservation),
                        self._history_size,
                    ],
                )


def _answered(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, StoreUnavailable):
            raise reply
    return replies


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _reply(answer: list[Any]) -> Reply:
    what, server_us, fields, *superior = answer
    server_time = int(server_us) / 1e6
    match what:
        case b"granted":
            record = _record(fields, server_time)
            named = _text(superior[0]) if superior else None
            return Granted(record.term, record.cursor, server_time, named)
        case b"refused":
            return Refused(_record(fields, server_time), server_time)
        case b"missing":
            return Missing(server_time)
        case _:
            return Released(server_time)


def _record(fields: list[Any], server_time: float) -> Record:
    # The order is FIELDS in the preamble.
    (holder, _, _, term, expires_at, lease, state, successor, renewals, transitions, elected_at) = (
        fields[:11]
    )
    app, event = fields[11:]
    return Record(
        holder=_text(holder),
        term=int(term),
        state=State(_text(state)),
        remaining=int(expires_at) / 1000 - server_time,
        lease_duration=int(lease) / 1000,
        renewals=int(renewals),
        elected_at=int(elected_at) / 1000,
        transitions=int(transitions),
        successor=_text(successor) or None,
        app=_text(app),
        cursor=_text(event) or "0-0",
    )


def _announcement(election: str, cursor: str, fields: list[Any]) -> Announcement:
    values = {_text(k): _text(v) for k, v in zip(fields[::2], fields[1::2], strict=True)}
    return Announcement(
        election=election,
        cursor=cursor,
        kind=values.get("kind", ""),
        node=values.get("node", ""),
        term=int(values.get("term") or 0),
        successor=values.get("successor") or None,
    )
