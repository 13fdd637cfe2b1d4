-- Ask for the lease.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- ARGV     holder nonce attempt lease_ms seen_term live_term watched_term watched_renewals
--          silent from_missing app history_size priority reservation_ms info
--          ended_term ended_reason ended_ms_ago from_damaged abstains
-- returns  answer(granted | refused | missing | damaged), then
--          [4] whether the register has this candidate's info
--          [5] for how many ms its node is held; empty if it is not
--          [6] when another life of its node was heard of, [7] the info of that life; or empty

local holder, nonce, attempt, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local seen_term, live_term = tonumber(ARGV[5]), tonumber(ARGV[6])
local watched_term, watched_renewals, silent = tonumber(ARGV[7]), ARGV[8], ARGV[9] == '1'
local from_missing, app, history_size = ARGV[10] == '1', ARGV[11], ARGV[12]
local priority, reservation, info = tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15]
local ended_term, ended_reason, ended_ago = ARGV[16], ARGV[17], tonumber(ARGV[18])
local from_damaged, abstains = ARGV[19] == '1', ARGV[20] == '1'

local record = load()
-- A term that is impossible by now was seen while the clock was wrong, and counts for nothing.
if seen_term > LIMIT.term then seen_term = 0 end
local term = tonumber(record.term) or 0
local gone = not record.term or term < seen_term
local ours = record.nonce == nonce
-- A leader is told that its node is held in the answer to a renewal.
local held = live_term == 0 and held_for(holder)
local place = seen(holder, nonce, lease, abstains and ABSTAINS or priority, info)
keep_in_flight(nonce, 2 * lease)

-- Write how this candidate's last leadership ended: once, however often it is told.
local function tell_end()
  for _, line in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 20)) do
    if line[2][2] == 'ended' and line[2][6] == ended_term then return end
  end
  announce(history_size, 'ended', holder, ended_term, 'reason', ended_reason,
           'ended_at', whole(now - ended_ago), 'life', life(nonce))
end
if ended_term ~= '' then tell_end() end

local function reply(what)
  local told = answer(what)
  told[4] = has_info(place, nonce) and 1 or 0
  told[5] = held and whole(held) or ''
  told[6], told[7] = namesake(place, lease)
  return told
end

-- When the lease in the record ended: when it ran out, or now if it would still run.
local function over_at()
  return whole(now + math.min(record.left or 0, 0))
end

local function grant()
  local fresh = whole(math.max(term + 1, seen_term + 1, micros))
  local how, ended_at = '', ''
  if gone then
    how = 'record lost'
  elseif record.state == 'held' then
    how, ended_at = 'expired', over_at()
  end
  local event = announce(history_size, 'elected', holder, fresh, 'reason', how,
                         'ended_at', ended_at, 'life', life(nonce))
  redis.call('HSET', KEYS[1], 'holder', holder, 'nonce', nonce, 'attempt', attempt, 'term', fresh,
             'expires_at', whole(now + lease), 'lease', lease, 'state', 'held',
             'successor', '', 'renewals', 0, 'elected_at', whole(now),
             'app', app, 'event', event, 'asked', '', 'asked_for', '', 'format', FORMAT)
  if record.damaged then redis.call('HSET', KEYS[1], 'transitions', 0) end
  redis.call('HINCRBY', KEYS[1], 'transitions', 1)
  return reply('granted')
end

-- A lease that is over goes to the candidate that asks, unless one of higher priority lives.
local function succeed()
  local best, highest = foremost(holder, lease)
  if not best or highest <= priority then return grant() end
  local event = announce(history_size, 'reserved', record.holder, record.term, 'successor', best,
                         'ended_at', over_at(), 'life', life(record.nonce))
  -- Count one renewal more, so that each candidate watches this reservation from its beginning.
  redis.call('HINCRBY', KEYS[1], 'renewals', 1)
  redis.call('HSET', KEYS[1], 'state', 'reserved', 'successor', best, 'event', event,
             'expires_at', whole(now + reservation))
  return reply('refused')
end

if abstains then
  return reply(record.damaged and 'damaged' or gone and 'missing' or 'refused')
end
if record.damaged and not held and (from_damaged or live_term > 0) then return grant() end
if record.damaged then return reply('damaged') end
if gone then
  -- Not there, or older than what this candidate knows: that proves nothing.
  if not held and (from_missing or live_term > term) then return grant() end
  return reply('missing')
end
if ours and attempt <= tonumber(record.attempt) then
  return reply('refused')  -- overtaken by a later request of the same candidate
end
if held then return reply('refused') end
if record.state == 'released' then return grant() end
local watched = watched_term == term and watched_renewals == record.renewals
silent = watched and silent
if record.state == 'reserved' then
  if record.successor == holder or record.left <= 0 or silent then return grant() end
  return reply('refused')
end
if ours then
  -- Never reserved for another: if the server's clock was set forward, this candidate may lead.
  if record.left <= 0 or term <= seen_term then return grant() end
  -- Granted before, and the reply was lost.
  redis.call('HSET', KEYS[1], 'attempt', attempt, 'expires_at', whole(now + lease))
  redis.call('HINCRBY', KEYS[1], 'renewals', attempt - record.attempt)
  return reply('granted')
end
if silent or (watched and record.left <= 0) then return succeed() end
return reply('refused')
