"""The scripts that elections are in Redis, and the keys they work on.

Guaranteed: every verb is one script, so it happens whole or not at all, and asking
again after a lost reply gives the same answer. A record has no TTL, because the
``volatile-*`` policies evict keys that have one first. A key in a state that no
candidate made is refused with a sentence that names it. Not guaranteed: that Redis
keeps the record (eviction, a flush, a replica that lagged).

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

from dataclasses import dataclass

from .redis_client import DAMAGED, Script

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
