"""The scripts that elections are in Redis, and the keys they work on.

Guaranteed: every verb is one script, so it happens whole or not at all, and asking
again after a lost reply gives the same answer. A record has no TTL, because the
``volatile-*`` policies evict keys that have one first. A record that no candidate can have
written counts as no record: no candidate learns from it, and it is written anew as carefully
as one that was lost. A key of another type is refused with a sentence that names it. Not
guaranteed: that Redis keeps the record (eviction, a flush, a replica that lagged), nor that
a forged record which a candidate could have written is found out.

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

from celery_leader.core.lease import CLOCK_SLACK
from celery_leader.core.timing import LONGEST_LEASE

from .client import DAMAGED, Script

#: The record's format. It grows with a field or a state that earlier versions do not know.
FORMAT = 1

#: The most candidates of one election that are kept; those not heard of for longest go first.
MOST_CANDIDATES = 10_000


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


#: The most lives of one node that the register tells apart.
_MOST_LIVES = 5

# Every script answers {what, server time in us, {the record's fields ..., the last line's id}}.
PREAMBLE = (
    f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = time[1] * 1000000 + time[2]
local FIELDS = {{'holder', 'nonce', 'attempt', 'term', 'expires_at', 'lease', 'state', 'successor',
                'renewals', 'transitions', 'elected_at', 'app', 'event', 'asked', 'asked_for',
                'format'}}
local REQUIRED = 13
local FORMAT = {FORMAT}
local STATES = {{held = true, released = true, reserved = true}}
-- No candidate can have written more than these limits. FAR: a clock may have been set back.
local FAR = {_ms(CLOCK_SLACK)}
local LIMIT = {{attempt = 1e12, renewals = 1e12, transitions = 1e12, lease = {_ms(LONGEST_LEASE)},
               term = micros + 1000 * FAR, expires_at = now + FAR, elected_at = now + FAR}}
"""
    + """
local function sound(field, value)
  if #value > 1000 then return false end
  local limit = LIMIT[field]
  return not limit or #value <= 16 and string.find(value, '^%d+$') and tonumber(value) <= limit
end
-- The record. One that makes no sense has no field but `damaged`: it is evidence of nothing.
local function load()
  local values, record, found, good = redis.call('HMGET', KEYS[1], unpack(FIELDS)), {}, 0, true
  for i, field in ipairs(FIELDS) do
    local value = values[i]
    record[field] = value
    if value then
      if i <= REQUIRED then found = found + 1 end
      good = good and sound(field, value)
    end
  end
  if record.state and not STATES[record.state] then
    -- A later version's state: nobody's before its lease has run out.
    if not ((tonumber(record.format) or 0) > FORMAT) then good = false end
    record.state = 'held'
  end
  good = good and (found == 0 or found == REQUIRED) and record.lease ~= '0'
  if not good then return {damaged = true, left = 0} end
  record.left = (tonumber(record.expires_at) or 0) - now
  return record
end
-- The record, for people: one that makes no sense is an error that says so.
local function shown()
  local record = load()
  if record.damaged then error('"""
    + DAMAGED
    + """') end
  return record
end
local function last_line()
  -- A candidate needs no history to be answered: a key of another type counts as empty.
  local last = redis.pcall('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
  return last[1] and last[1][1] or '0-0'
end
local function answer(what)
  local fields = redis.call('HMGET', KEYS[1], unpack(FIELDS))
  fields[#FIELDS + 1] = last_line()
  -- '%.0f', because tostring() would print a term as 1.79e+15.
  return {what, string.format('%.0f', micros), fields}
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
-- Tells one life of a node from another. Others may read it; the nonce stays secret.
local function life(nonce) return string.sub(redis.sha1hex(nonce), 1, 16) end
-- Redis gives no line a lower time than the line before it. After a line of the far future
-- no new line would have its true time, so such a history is deleted.
local function mend_history()
  if tonumber(string.match(last_line(), '^%d+')) > now + FAR then
    redis.call('PEXPIRE', KEYS[2], 0)
  end
end
local function announce(history_size, kind, node, term, ...)
  local line = {'XADD', KEYS[2], 'MAXLEN', history_size, '*', 'kind', kind, 'node', node,
                'term', term, ...}
  mend_history()
  local id = redis.pcall(unpack(line))
  if type(id) ~= 'table' then return id end
  if string.find(id.err, 'exhausted') then redis.call('PEXPIRE', KEYS[2], 0) end
  return redis.call(unpack(line))
end
"""

# KEYS[3] candidates, KEYS[4] priorities, KEYS[6] facts
_CANDIDATES = (
    _HOLDS
    + f"""
local MOST, LIVES = {MOST_CANDIDATES}, {_MOST_LIVES}"""
    + """
-- A node's place in the register is its name. When several lives of one node are alive, the
-- latest has that place. Each other life has its own: the name, a separator, a number.
local function nth_place(node, number)
  return number == 1 and node or node .. '\\31' .. number
end
local function node_of(place) return string.match(place, '^[^\\31]*') end
local function forget(place)
  redis.call('ZREM', KEYS[3], place)
  redis.call('HDEL', KEYS[4], place)
  redis.call('HDEL', KEYS[6], place)
end
-- Whether this life wrote the facts at a place; nil: there are none.
local function owns(place, nonce)
  local facts = redis.call('HGET', KEYS[6], place)
  if not facts then return nil end
  return string.sub(facts, 1, #nonce + 1) == nonce .. '|'
end
local function known(place, nonce)
  local facts = owns(place, nonce) and redis.call('HGET', KEYS[6], place)
  return facts and #facts > #nonce + 1
end
local function lives(place, lease)
  local at = tonumber(redis.call('ZSCORE', KEYS[3], place) or nil)
  return at and at >= now - 1.5 * lease and at <= now + 3 * lease and at
end
-- The place of a life, and whether that life has it already. `new`: this request brings facts.
local function place_of(node, nonce, lease, new)
  local own
  for number = 1, LIVES do
    if owns(nth_place(node, number), nonce) then own = number break end
  end
  if own == 1 or not own and new then return node, own == 1 end
  if not own and owns(node, nonce) == nil then return node, false end
  for number = 1, (own or LIVES) - 1 do
    local place = nth_place(node, number)
    if not lives(place, lease) then
      if own then forget(nth_place(node, own)) end
      return place, false
    end
  end
  return nth_place(node, own or LIVES), own ~= nil
end
local function seen(node, nonce, lease, priority, facts)
  mend_history()
  local place, own = place_of(node, nonce, lease, facts ~= '')
  redis.call('ZADD', KEYS[3], now, place)
  if tonumber(priority) == 0 then
    redis.call('HDEL', KEYS[4], place)
  else
    redis.call('HSET', KEYS[4], place, priority)
  end
  if facts ~= '' or not own and (place ~= node or owns(place, nonce) ~= nil) then
    redis.call('HSET', KEYS[6], place, nonce .. '|' .. facts)
  end
  -- Scores of the future go too: no contact can have made them.
  for _, range in ipairs({{'-inf', now - 3 * lease}, {'(' .. now + 3 * lease, '+inf'}}) do
    for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], range[1], range[2],
                                     'LIMIT', 0, 100)) do
      forget(gone)
    end
  end
  for _, over in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1 - MOST)) do forget(over) end
  for i = 3, 6 do
    if i ~= 5 then redis.call('PEXPIRE', KEYS[i], 3 * lease) end
  end
  return place
end
-- When another life of this node was last heard of, and its facts.
local function namesake(place, lease)
  local node = node_of(place)
  local other = place == node and nth_place(node, 2) or node
  local at = lives(other, lease)
  if not at then return '', '' end
  local facts = redis.call('HGET', KEYS[6], other) or ''
  return string.format('%.0f', at), #facts <= 4096 and facts or ''
end
-- Kept in place of a priority by a candidate that abstains.
local ABSTAINS = '-1001'
local function abstaining(place) return redis.call('HGET', KEYS[4], place) == ABSTAINS end
local function priority_of(place)
  local priority = tonumber(redis.call('HGET', KEYS[4], place)) or 0
  -- Anything that is not a priority counts as 0.
  return math.abs(priority) <= 1000 and priority or 0
end
-- Among the other live candidates that are not held and do not abstain: the one of the
-- highest priority, that priority, and the lowest priority.
local function foremost(node, lease)
  if redis.call('EXISTS', KEYS[4]) == 0 then return nil end
  local best, highest, lowest
  local live = redis.call('ZREVRANGEBYSCORE', KEYS[3], now + 3 * lease, now - 1.5 * lease)
  for _, each in ipairs(live) do
    local name = node_of(each)
    if name ~= node and #name <= 255 and not held_for(name) and not abstaining(each) then
      local priority = priority_of(each)
      if not highest or priority > highest then best, highest = name, priority end
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
#      ended_term ended_reason ended_ms_ago from_damaged abstains
# -> granted | refused | missing | damaged; whether the facts are known; for how many ms it is
#    held; when another life of this node was heard of, and what it says of itself
_ACQUIRE = (
    PREAMBLE
    + _CANDIDATES
    + """
local holder, nonce, attempt, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local seen_term, live_term = tonumber(ARGV[5]), tonumber(ARGV[6])
local from_missing = ARGV[10] == '1'
local record = load()
-- A term that is impossible by now was seen while the clock was wrong, and counts for nothing.
if seen_term > LIMIT.term then seen_term = 0 end
local term = tonumber(record.term) or 0
local gone = not record.term or term < seen_term
local ours = record.nonce == nonce
-- Who leads is told with its renewals.
local held = live_term == 0 and held_for(holder)
local abstains = ARGV[20] == '1'
local place = seen(holder, nonce, lease, abstains and ABSTAINS or ARGV[13], ARGV[15])

-- Write how this candidate's last leadership ended, once, however often it is told.
local function tell(ended, reason, ago)
  for _, line in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 20)) do
    if line[2][2] == 'ended' and line[2][6] == ended then return end
  end
  announce(ARGV[12], 'ended', holder, ended, 'reason', reason,
           'ended_at', string.format('%.0f', now - ago), 'life', life(nonce))
end
if ARGV[16] ~= '' then tell(ARGV[16], ARGV[17], tonumber(ARGV[18])) end

local function reply(what)
  local told = answer(what)
  told[4] = known(place, nonce) and 1 or 0
  told[5] = held and string.format('%.0f', held) or ''
  told[6], told[7] = namesake(place, lease)
  return told
end

-- When the lease in the record ended: when it ran out, or now if it would still run.
local function over_at()
  return string.format('%.0f', now + math.min(record.left or 0, 0))
end

local function grant()
  local fresh = string.format('%.0f', math.max(term + 1, seen_term + 1, micros))
  local how, ended_at = '', ''
  if gone then
    how = 'record lost'
  elseif record.state == 'held' then
    how, ended_at = 'expired', over_at()
  end
  local event = announce(ARGV[12], 'elected', holder, fresh, 'reason', how, 'ended_at', ended_at,
                         'life', life(nonce))
  redis.call('HSET', KEYS[1], 'holder', holder, 'nonce', nonce, 'attempt', attempt, 'term', fresh,
             'expires_at', string.format('%.0f', now + lease), 'lease', lease, 'state', 'held',
             'successor', '', 'renewals', 0, 'elected_at', string.format('%.0f', now),
             'app', ARGV[11], 'event', event, 'asked', '', 'asked_for', '', 'format', FORMAT)
  if record.damaged then redis.call('HSET', KEYS[1], 'transitions', 0) end
  redis.call('HINCRBY', KEYS[1], 'transitions', 1)
  return reply('granted')
end

-- A lease that is over goes to the candidate that asks, unless one of higher priority lives.
local function succeed()
  local best, highest = foremost(holder, lease)
  if not best or highest <= tonumber(ARGV[13]) then return grant() end
  local event = announce(ARGV[12], 'reserved', record.holder, record.term, 'successor', best,
                         'ended_at', over_at(), 'life', life(record.nonce))
  -- Count one renewal more, so that each candidate watches this reservation from its beginning.
  redis.call('HINCRBY', KEYS[1], 'renewals', 1)
  redis.call('HSET', KEYS[1], 'state', 'reserved', 'successor', best, 'event', event,
             'expires_at', string.format('%.0f', now + ARGV[14]))
  return reply('refused')
end

if abstains then
  return reply(record.damaged and 'damaged' or gone and 'missing' or 'refused')
end
if record.damaged and not held and (ARGV[19] == '1' or live_term > 0) then return grant() end
if record.damaged then return reply('damaged') end
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
  -- Never reserved for another: if the server's clock was set forward, it may still lead.
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
# -> granted | refused | missing | damaged; whether the facts are known; if granted: what it is to
#    give way for, and to whom; when another life of this node was heard of, and what it says
_RENEW = (
    PREAMBLE
    + _CANDIDATES
    + """
local record = load()
if not record.term then return answer(record.damaged and 'damaged' or 'missing') end
if record.nonce ~= ARGV[1] or tonumber(record.term) ~= tonumber(ARGV[3])
   or record.state ~= 'held' or record.left <= 0
   or tonumber(ARGV[2]) <= tonumber(record.attempt) then
  return answer('refused')
end
redis.call('HSET', KEYS[1], 'attempt', ARGV[2], 'lease', ARGV[4],
           'expires_at', string.format('%.0f', now + ARGV[4]))
-- Grows with the request's number: when an old copy is renewed, no state is ever seen twice.
redis.call('HINCRBY', KEYS[1], 'renewals', ARGV[2] - record.attempt)
local lease = tonumber(ARGV[4])
local place = seen(record.holder, ARGV[1], lease, ARGV[5], ARGV[7])
local reply = answer('granted')
reply[4] = known(place, ARGV[1]) and 1 or 0
reply[5], reply[6] = record.asked or '', record.asked_for or ''
if reply[5] == '' and held_for(record.holder) then reply[5] = 'held' end
if reply[5] == '' and ARGV[6] == '1' then
  local best, highest = foremost(record.holder, lease)
  if best and highest > tonumber(ARGV[5]) then reply[5], reply[6] = 'outranked', best end
end
reply[7], reply[8] = namesake(place, lease)
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
local function leave(node, nonce)
  for number = 1, LIVES do
    local place = nth_place(node, number)
    local own = owns(place, nonce)
    if own or number == 1 and own == nil then return forget(place) end
  end
end
if ARGV[8] == '1' then leave(ARGV[1], ARGV[2]) end
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
                         'successor', successor, 'reason', ARGV[7], 'life', life(record.nonce))
  redis.call('HSET', KEYS[1], 'state', successor == '' and 'released' or 'reserved',
             'successor', successor, 'event', event,
             'expires_at', string.format('%.0f', now + (successor == '' and 0 or ARGV[5])))
end
return answer('released')
"""
)

# KEYS record history
# -> record | missing
_READ = PREAMBLE + "return answer(shown().term and 'record' or 'missing')"

# KEYS record history
# ARGV most
# -> record | missing, and the last lines of history, the latest first
_HISTORY = (
    PREAMBLE
    + """
local reply = answer(shown().term and 'record' or 'missing')
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
  local place, node = members[i], node_of(members[i])
  if #node <= 255 then
    local held = held_for(node)
    local facts = redis.call('HGET', KEYS[6], place) or ''
    found[#found + 1] = {node, members[i + 1], string.format('%.0f', priority_of(place)),
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
local record, successor = shown(), ARGV[2]
if not record.term or record.state ~= 'held' or record.left <= 0 then return answer('unled') end
if successor ~= '' then
  if successor == record.holder then return answer('leads') end
  if not lives(successor, tonumber(record.lease)) then return answer('absent') end
  if held_for(successor) then return answer('held') end
end
local event = announce(ARGV[3], 'asked', record.holder, record.term, 'successor', successor,
                       'reason', ARGV[1], 'life', life(record.nonce))
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

# KEYS record history candidates priorities held facts
# ARGV lease_ms
# -> {forgotten | unknown} | {lives, node, ms since it was heard of} | {kept, who, ms left}
_FORGET = (
    PREAMBLE
    + _CANDIDATES
    + """
local record = load()
local lease = math.max(tonumber(record.lease) or 0, tonumber(ARGV[1]))
local heard = redis.call('ZREVRANGEBYSCORE', KEYS[3], now + 3 * lease, now - 3 * lease,
                         'WITHSCORES', 'LIMIT', 0, 1)
if heard[1] then
  return {'lives', node_of(heard[1]), string.format('%.0f', math.max(0, now - heard[2]))}
end
if record.term and record.state ~= 'released' and record.left > -lease then
  local who = record.state == 'held' and record.holder or record.successor
  return {'kept', who, string.format('%.0f', record.left + lease)}
end
-- Given no time to live, since a user of Redis needs no other right for that.
local gone = 0
for i = 1, 6 do gone = gone + redis.call('PEXPIRE', KEYS[i], 0) end
return {gone > 0 and 'forgotten' or 'unknown'}
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
ASK, HOLD, FREE, HELD, FORGET = map(_script, (_ASK, _HOLD, _FREE, _HELD, _FORGET))
