-- Give the lease up, and leave the register if the candidate goes for good.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- ARGV     holder nonce attempt successor reservation_ms history_size reason leaving
-- returns  answer(released)

local holder, nonce, attempt, successor = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local reservation, history_size, reason, leaving = ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1'

local function leave()
  for number = 1, LIVES do
    local place = nth_place(holder, number)
    local own = owns(place, nonce)
    if own or number == 1 and own == nil then return forget(place) end
  end
end

local record = load()
if leaving then leave() end
if record.nonce ~= nonce or tonumber(attempt) <= tonumber(record.attempt) then
  return answer('released')
end
redis.call('HSET', KEYS[1], 'attempt', attempt)
if record.state == 'held' then
  if successor == '' or held_for(successor) then
    local best, highest, lowest = foremost(record.holder, tonumber(record.lease))
    successor = best and highest > lowest and best or ''
  end
  local event = announce(history_size, 'resigned', record.holder, record.term,
                         'successor', successor, 'reason', reason, 'life', life(record.nonce))
  redis.call('HSET', KEYS[1], 'state', successor == '' and 'released' or 'reserved',
             'successor', successor, 'event', event,
             'expires_at', whole(now + (successor == '' and 0 or reservation)))
end
return answer('released')
