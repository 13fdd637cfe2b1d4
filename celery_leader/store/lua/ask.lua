-- Ask the leader to step down, in favour of a successor if one is named.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- ARGV     reason successor history_size
-- returns  answer(asked | unled | leads | absent | held)

local reason, successor, history_size = ARGV[1], ARGV[2], ARGV[3]

local record = shown()
if not record.term or record.state ~= 'held' or record.left <= 0 then return answer('unled') end
if successor ~= '' then
  if successor == record.holder then return answer('leads') end
  if not lives(successor, tonumber(record.lease)) then return answer('absent') end
  if held_for(successor) then return answer('held') end
end
local event = announce(history_size, 'asked', record.holder, record.term, 'successor', successor,
                       'reason', reason, 'life', life(record.nonce))
redis.call('HSET', KEYS[1], 'asked', reason, 'asked_for', successor, 'event', event)
return answer('asked')
