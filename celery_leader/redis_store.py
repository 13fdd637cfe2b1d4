"""Leases in Redis: one hash per election, judged by the server's clock.

Guaranteed: every verb is one script, so it happens whole or not at all, and asking
again after a lost reply gives the same answer. A record has no TTL, because the
``volatile-*`` policies evict keys that have one first. A key in a state that no
candidate made is refused with a sentence that names it. Not guaranteed: that Redis
keeps the record (eviction, a flush, a replica that lagged); ``election.py`` says
what a candidate makes of that.

Keys, which are public (``{namespace}`` is ``leader_namespace``):

=====================================================  =========================================
``celery-leader:{namespace}:election:{name}``          hash, the record
``celery-leader:{namespace}:history:{name}``           stream, who was elected, who gave up and why
``celery-leader:{namespace}:candidates:{name}``        sorted set, node by last contact in ms
``celery-leader:{namespace}:priorities:{name}``        hash, node to its priority, unless that is 0
``celery-leader:{namespace}:held:{name}``              hash, node to until when (ms; 0: no end)
``celery-leader:{namespace}:facts:{name}``             hash, node to what it says of itself
=====================================================  =========================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import LeaderError, StoreUnavailable
from .facts import facts_from, printable
from .history import Reign, reigns
from .lease import (
    Acquire,
    Announcement,
    Candidate,
    Ended,
    Granted,
    Missing,
    Order,
    Record,
    Refused,
    Release,
    Released,
    Renew,
    Reply,
    Request,
    State,
)
from .redis_client import DAMAGED, RedisClient, Script

#: The most candidates of one election that are kept; those not heard of for longest go first.
MOST_CANDIDATES = 10_000

# Every script answers {what, server time in us, the record's fields ...}.
PREAMBLE = (
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = time[1] * 1000000 + time[2]
local FIELDS = {'holder', 'nonce', 'attempt', 'term', 'expires_at', 'lease', 'state', 'successor',
                'renewals', 'transitions', 'elected_at', 'app', 'event', 'asked', 'asked_for'}
local REQUIRED = 13
local FORM = {attempt = '^%d+$', term = '^%d+$', expires_at = '^%d+$', lease = '^%d+$',
              renewals = '^%d+$', transitions = '^%d+$', elected_at = '^%d+$',
              event = '^%d+%-%d+$'}
local STATES = {held = true, released = true, reserved = true}
local function load()
  local values, record, found = redis.call('HMGET', KEYS[1], unpack(FIELDS)), {}, 0
  for i, field in ipairs(FIELDS) do
    local value = values[i]
    record[field] = value
    if value then
      if i <= REQUIRED then found = found + 1 end
      -- Beyond 9e15 a number is not exact.
      local form = FORM[field]
      if #value > 1000 or form and (#value > 40 or not string.find(value, form)
                                    or (tonumber(value) or 0) > 9e15)
         or field == 'state' and not STATES[value] then
        error('"""
    + DAMAGED
    + """')
      end
    end
  end
  if found > 0 and found < REQUIRED then error('"""
    + DAMAGED
    + """') end
  record.left = (tonumber(record.expires_at) or 0) - now
  return record
end
local function answer(what)
  -- '%.0f', because tostring() would print a term as 1.79e+15.
  return {what, string.format('%.0f', micros), redis.call('HMGET', KEYS[1], unpack(FIELDS))}
end
"""
)

# KEYS[2] history, KEYS[5] held
_HOLDS = """
-- For how many ms a node is kept out; -1: without an end; nil: it is not.
local function held_for(node)
  local till = redis.call('HGET', KEYS[5], node)
  if not till then return nil end
  if #till > 16 or not string.find(till, '^%d+$') or tonumber(till) == 0 then return -1 end
  local left = tonumber(till) - now
  return left > 0 and left or nil
end
local function announce(history_size, kind, node, term, ...)
  return redis.call('XADD', KEYS[2], 'MAXLEN', history_size, '*', 'kind', kind, 'node', node,
                    'term', term, ...)
end
"""

# KEYS[3] candidates, KEYS[4] priorities, KEYS[6] facts
_CANDIDATES = (
    _HOLDS
    + f"""
local MOST = {MOST_CANDIDATES}"""
    + """
local function forget(node)
  redis.call('ZREM', KEYS[3], node)
  redis.call('HDEL', KEYS[4], node)
  redis.call('HDEL', KEYS[6], node)
end
-- Whether what is kept of a node is of this life of it.
local function known(node, nonce)
  local facts = redis.call('HGET', KEYS[6], node)
  return facts and string.sub(facts, 1, #nonce + 1) == nonce .. '|'
end
local function seen(node, nonce, lease, priority, facts)
  redis.call('ZADD', KEYS[3], now, node)
  if tonumber(priority) == 0 then
    redis.call('HDEL', KEYS[4], node)
  else
    redis.call('HSET', KEYS[4], node, priority)
  end
  if facts ~= '' then redis.call('HSET', KEYS[6], node, nonce .. '|' .. facts) end
  local silent = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - 3 * lease, 'LIMIT', 0, 100)
  for _, gone in ipairs(silent) do forget(gone) end
  for _, over in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1 - MOST)) do forget(over) end
  for i = 3, 6 do
    if i ~= 5 then redis.call('PEXPIRE', KEYS[i], 3 * lease) end
  end
end
-- Of the others heard of lately that are not held: who has the highest priority, that, and
-- the lowest of any.
local function foremost(node, lease)
  if redis.call('EXISTS', KEYS[4]) == 0 then return nil end
  local best, highest, lowest
  local live = redis.call('ZREVRANGEBYSCORE', KEYS[3], '+inf', now - 1.5 * lease)
  for _, each in ipairs(live) do
    if each ~= node and #each <= 255 and not held_for(each) then
      local priority = tonumber(redis.call('HGET', KEYS[4], each)) or 0
      if not highest or priority > highest then best, highest = each, priority end
      if not lowest or priority < lowest then lowest = priority end
    end
  end
  return best, highest, lowest
end
"""
)

# KEYS record history candidates priorities held facts
# ARGV holder nonce attempt lease_ms seen_term live_term watched_term watched_renewals
#      silent from_missing app history_size priority reservation_ms facts
#      ended_term ended_reason ended_ms_ago
# -> granted | refused | missing; whether the facts are known; for how many ms it is held
_ACQUIRE = (
    PREAMBLE
    + _CANDIDATES
    + """
local holder, nonce, attempt, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local seen_term, live_term = tonumber(ARGV[5]), tonumber(ARGV[6])
local from_missing = ARGV[10] == '1'
local record = load()
local term = tonumber(record.term) or 0
local gone = not record.term or term < seen_term
local ours = record.nonce == nonce
-- Who leads is told with its renewals.
local held = live_term == 0 and held_for(holder)
seen(holder, nonce, lease, ARGV[13], ARGV[15])

-- What became of a leadership of this candidate, once, however often it is told.
local function tell(ended, reason, ago)
  for _, line in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 20)) do
    if line[2][2] == 'ended' and line[2][6] == ended then return end
  end
  announce(ARGV[12], 'ended', holder, ended, 'reason', reason,
           'ended_at', string.format('%.0f', now - ago))
end
if ARGV[16] ~= '' then tell(ARGV[16], ARGV[17], tonumber(ARGV[18])) end

local function reply(what)
  local told = answer(what)
  told[4] = known(holder, nonce) and 1 or 0
  told[5] = held and string.format('%.0f', held) or ''
  return told
end

local function grant()
  local fresh = string.format('%.0f', math.max(term + 1, seen_term + 1, micros))
  local how, ended_at = '', ''
  if gone then
    how = 'record lost'
  elseif record.state == 'held' then
    how, ended_at = 'expired', record.expires_at
  end
  local event = announce(ARGV[12], 'elected', holder, fresh, 'reason', how, 'ended_at', ended_at)
  redis.call('HSET', KEYS[1], 'holder', holder, 'nonce', nonce, 'attempt', attempt, 'term', fresh,
             'expires_at', string.format('%.0f', now + lease), 'lease', lease, 'state', 'held',
             'successor', '', 'renewals', 0, 'elected_at', string.format('%.0f', now),
             'app', ARGV[11], 'event', event, 'asked', '', 'asked_for', '')
  redis.call('HINCRBY', KEYS[1], 'transitions', 1)
  return reply('granted')
end

-- A lease that is over goes to who asks, unless a candidate of higher priority is there.
local function succeed()
  local best, highest = foremost(holder, lease)
  if not best or highest <= tonumber(ARGV[13]) then return grant() end
  local event = announce(ARGV[12], 'reserved', record.holder, record.term, 'successor', best,
                         'ended_at', record.expires_at)
  -- One renewal more: who watched this lease is to watch it anew.
  redis.call('HINCRBY', KEYS[1], 'renewals', 1)
  redis.call('HSET', KEYS[1], 'state', 'reserved', 'successor', best, 'event', event,
             'expires_at', string.format('%.0f', now + ARGV[14]))
  return reply('refused')
end

if gone then
  -- Not there, or older than what this candidate knows: no evidence of anything.
  if not held and (from_missing or live_term > term) then return grant() end
  return reply('missing')
end
if ours and attempt <= tonumber(record.attempt) then
  return reply('refused')  -- overtaken by a later request of the same candidate
end
if held then return reply('refused') end
if record.state == 'released' then return grant() end
local watched = tonumber(ARGV[7]) == term and ARGV[8] == record.renewals
local silent = watched and ARGV[9] == '1'
if record.state == 'reserved' then
  if record.successor == holder or record.left <= 0 or silent then return grant() end
  return reply('refused')
end
if ours then
  -- Never kept for another: it may lead still, on a lease that the server's clock ran ahead of.
  if record.left <= 0 or term <= seen_term then return grant() end
  -- Granted before, and the reply was lost.
  redis.call('HSET', KEYS[1], 'attempt', attempt, 'expires_at', string.format('%.0f', now + lease))
  redis.call('HINCRBY', KEYS[1], 'renewals', attempt - record.attempt)
  return reply('granted')
end
if silent or (watched and record.left <= 0) then return succeed() end
return reply('refused')
"""
)

# KEYS record history candidates priorities held facts
# ARGV nonce attempt term lease_ms priority preempted facts
# -> granted | refused | missing; whether the facts are known; if granted: what it is to give way
#    for, and to whom
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
seen(record.holder, ARGV[1], tonumber(ARGV[4]), ARGV[5], ARGV[7])
local reply = answer('granted')
reply[4] = known(record.holder, ARGV[1]) and 1 or 0
reply[5], reply[6] = record.asked or '', record.asked_for or ''
if reply[5] == '' and held_for(record.holder) then reply[5] = 'held' end
if reply[5] == '' and ARGV[6] == '1' then
  local best, highest = foremost(record.holder, tonumber(ARGV[4]))
  if best and highest > tonumber(ARGV[5]) then reply[5], reply[6] = 'outranked', best end
end
return reply
"""
)

# KEYS record history candidates priorities held facts
# ARGV holder nonce attempt successor reservation_ms history_size reason leaving
# -> released
_RELEASE = (
    PREAMBLE
    + _CANDIDATES
    + """
local record = load()
if ARGV[8] == '1' and (known(ARGV[1], ARGV[2]) or redis.call('HEXISTS', KEYS[6], ARGV[1]) == 0) then
  forget(ARGV[1])
end
if record.nonce ~= ARGV[2] or tonumber(ARGV[3]) <= tonumber(record.attempt) then
  return answer('released')
end
redis.call('HSET', KEYS[1], 'attempt', ARGV[3])
if record.state == 'held' then
  local successor = ARGV[4]
  if successor == '' or held_for(successor) then
    local best, highest, lowest = foremost(record.holder, tonumber(record.lease))
    successor = best and highest > lowest and best or ''
  end
  local event = announce(ARGV[6], 'resigned', record.holder, record.term,
                         'successor', successor, 'reason', ARGV[7])
  redis.call('HSET', KEYS[1], 'state', successor == '' and 'released' or 'reserved',
             'successor', successor, 'event', event,
             'expires_at', string.format('%.0f', now + (successor == '' and 0 or ARGV[5])))
end
return answer('released')
"""
)

# KEYS record
# -> record | missing
_READ = PREAMBLE + "return answer(load().term and 'record' or 'missing')"

# KEYS record history
# ARGV most
# -> record | missing, and the last lines of history, the latest first
_HISTORY = (
    PREAMBLE
    + """
local reply = answer(load().term and 'record' or 'missing')
reply[4] = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[1])
return reply
"""
)

# KEYS record history candidates priorities held facts
# -> server time in us, {node, last contact, priority, ms held, facts}, ...
_REGISTER = (
    PREAMBLE
    + _CANDIDATES
    + """
local found = {string.format('%.0f', micros)}
local members = redis.call('ZREVRANGE', KEYS[3], 0, MOST - 1, 'WITHSCORES')
for i = 1, #members, 2 do
  local node = members[i]
  if #node <= 255 then
    local priority = tonumber(redis.call('HGET', KEYS[4], node)) or 0
    local held = held_for(node)
    local facts = redis.call('HGET', KEYS[6], node) or ''
    -- What is no number, or none that counts, becomes 0.
    if not (math.abs(priority) <= 1000) then priority = 0 end
    found[#found + 1] = {node, members[i + 1], string.format('%.0f', priority),
                         held and string.format('%.0f', held) or '',
                         #facts <= 4096 and facts or ''}
  end
end
return found
"""
)

# KEYS record history candidates priorities held facts
# ARGV reason successor history_size
# -> asked | unled | leads | absent | held
_ASK = (
    PREAMBLE
    + _CANDIDATES
    + """
local record, successor = load(), ARGV[2]
if not record.term or record.state ~= 'held' or record.left <= 0 then return answer('unled') end
if successor ~= '' then
  if successor == record.holder then return answer('leads') end
  local at = tonumber(redis.call('ZSCORE', KEYS[3], successor) or nil)
  if not at or at < now - 1.5 * record.lease then return answer('absent') end
  if held_for(successor) then return answer('held') end
end
local event = announce(ARGV[3], 'asked', record.holder, record.term,
                       'successor', successor, 'reason', ARGV[1])
redis.call('HSET', KEYS[1], 'asked', ARGV[1], 'asked_for', successor, 'event', event)
return answer('asked')
"""
)

# KEYS record history candidates priorities held facts
# ARGV node ms (0: without an end) history_size
# -> candidate | unknown
_HOLD = (
    PREAMBLE
    + _CANDIDATES
    + """
local record = load()
local flat = redis.call('HGETALL', KEYS[5])
for i = 1, #flat, 2 do
  if not held_for(flat[i]) then redis.call('HDEL', KEYS[5], flat[i]) end
end
local till = ARGV[2] == '0' and '0' or string.format('%.0f', now + ARGV[2])
redis.call('HSET', KEYS[5], ARGV[1], till)
announce(ARGV[3], 'held', ARGV[1], record.term or 0)
return answer(redis.call('ZSCORE', KEYS[3], ARGV[1]) and 'candidate' or 'unknown')
"""
)

# KEYS record history candidates priorities held facts
# ARGV node history_size
# -> freed | free
_FREE = (
    PREAMBLE
    + _CANDIDATES
    + """
local record, held = load(), held_for(ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
if not held then return answer('free') end
announce(ARGV[2], 'freed', ARGV[1], record.term or 0)
return answer('freed')
"""
)

# KEYS record history candidates priorities held facts
# -> server time in us, {node, ms held}, ...
_HELD = (
    PREAMBLE
    + _HOLDS
    + """
local found = {string.format('%.0f', micros)}
for _, node in ipairs(redis.call('HKEYS', KEYS[5])) do
  local held = held_for(node)
  if held and #node <= 255 then found[#found + 1] = {node, string.format('%.0f', held)} end
end
return found
"""
)


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
        return [self.of(kind, name) for kind in _KINDS]


_KINDS = {
    "election": "hash",
    "history": "stream",
    "candidates": "zset",
    "priorities": "hash",
    "held": "hash",
    "facts": "hash",
}


def _script(text: str) -> Script:
    return Script(text, tuple(_KINDS.values()))


ACQUIRE, RENEW, RELEASE, READ = map(_script, (_ACQUIRE, _RENEW, _RELEASE, _READ))
HISTORY, REGISTER = map(_script, (_HISTORY, _REGISTER))
ASK, HOLD, FREE, HELD = map(_script, (_ASK, _HOLD, _FREE, _HELD))


@dataclass(frozen=True, slots=True)
class Survey:
    """All there is to see of one election.

    Attributes:
        record: who leads, or led last.
        candidates: who was heard of lately, the latest first.
        held: nodes that are kept out, and for how many seconds more.
        reigns: who led, the latest first.
    """

    record: Record | None
    candidates: list[Candidate]
    held: dict[str, float]
    reigns: list[Reign]


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
        self, cursors: dict[str, str], timeout: float, wake: int | None, patience: float = 1.0
    ) -> list[Announcement]:
        """Wait for news; see ``LeaseStore``."""
        names = {self._keys.of("history", name): name for name in cursors}
        millis = max(1, int(timeout * 1000))
        reply = self._client.wait_for(
            ["XREAD", "BLOCK", millis, "STREAMS", *names, *cursors.values()],
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
        return _candidates(self._run(REGISTER, election))

    # -- what people ask ------------------------------------------------------

    def survey(self, elections: Sequence[str], reign_count: int) -> dict[str, Survey]:
        """All there is to see of ``elections``, in one round trip.

        Raises:
            StoreUnavailable: Redis did not answer, or a key is damaged.
        """
        # A leadership takes two lines, or some more where orders were given.
        calls: list[tuple[Script, Sequence[str], Sequence[Any]]] = []
        for name in elections:
            keys = self._keys.election(name)
            calls += [
                (HISTORY, keys, [8 * reign_count + 1]),
                (REGISTER, keys, []),
                (HELD, keys, []),
            ]
        answers = self._client.run(calls)
        return {
            name: self._surveyed(name, reign_count, answers[i : i + 3])
            for i, name in zip(range(0, len(answers), 3), elections, strict=True)
        }

    def _surveyed(self, election: str, reign_count: int, answers: Sequence[Any]) -> Survey:
        for answer in answers:
            if isinstance(answer, StoreUnavailable):
                raise answer
        record, found = self._history(election, answers[0])
        return Survey(record, _candidates(answers[1]), _held_nodes(answers[2]), found[:reign_count])

    def history(self, election: str, count: int) -> list[Reign]:
        """The last ``count`` leaderships that are remembered, the latest first.

        Raises:
            StoreUnavailable: Redis did not answer, or a key is damaged.
        """
        most = max(self._history_size, 4 * count)
        _, found = self._history(election, self._run(HISTORY, election, [most]))
        return found[:count]

    def _history(self, election: str, answer: list[Any]) -> tuple[Record | None, list[Reign]]:
        what, server_us, fields, found = answer
        read_at = int(server_us) / 1e6
        record = None if what == b"missing" else _record(fields, read_at)
        lines = [_announcement(election, _text(cursor), flat) for cursor, flat in reversed(found)]
        return record, reigns(lines, record, read_at)

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
        millis = 0 if duration is None else max(1, _ms(duration))
        what, *_ = self._run(HOLD, election, [node, millis, self._history_size])
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
                        request.facts,
                        *_ended(request.ended),
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
                        request.facts,
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
                        _ms(request.reservation),
                        self._history_size,
                        request.reason,
                        int(request.leaving),
                    ],
                )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _ended(ended: Ended | None) -> list[Any]:
    return ["", "", ""] if ended is None else [ended.term, ended.reason, _ms(ended.ago)]


_WHY_NOT = {
    b"unled": "nobody leads, so there is nobody to give way",
    b"leads": "{node} leads already",
    b"absent": (
        "{node} is no live candidate; `celery leader status --election {election}` lists them"
    ),
    b"held": "{node} is held; let it in first with `celery leader release {node}`",
}


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
            order = Order(_text(told[1]), _text(told[2]) or None) if told[2:] and told[1] else None
            return Granted(record.term, record.cursor, server_time, order, known)
        case b"refused":
            held = _seconds_held(told[1]) if told else None
            return Refused(_record(fields, server_time), server_time, held, known)
        case b"missing":
            held = _seconds_held(told[1]) if told else None
            return Missing(server_time, held, known)
        case _:
            return Released(server_time)


def _seconds_held(millis: bytes) -> float | None:
    if not millis:
        return None
    return float("inf") if millis == b"-1" else int(millis) / 1000


def _record(fields: list[Any], server_time: float) -> Record:
    # The order is FIELDS in the preamble.
    (holder, _, _, term, expires_at, lease, state, successor, renewals, transitions, elected_at) = (
        fields[:11]
    )
    app, event = fields[11:13]
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
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 16


def _candidates(answer: list[Any]) -> list[Candidate]:
    server_us, *found = answer
    return [_candidate(int(server_us) / 1e6, *each) for each in found]


def _held_nodes(answer: list[Any]) -> dict[str, float]:
    _, *found = answer
    return {_text(node): _seconds_held(millis) or 0.0 for node, millis in found}


def _candidate(
    server_time: float, node: bytes, at: bytes, priority: bytes, held: bytes, facts: bytes
) -> Candidate:
    ago = server_time - float(at) / 1000
    _, _, said = facts.partition(b"|")
    return Candidate(
        node=_text(node),
        # A score can be anything that is a number, also infinity.
        seen_ago=max(0.0, min(ago, server_time)),
        priority=int(priority),
        held_for=_seconds_held(held),
        facts=facts_from(said.decode("utf-8", "replace")),
    )
