-- Keep a node out of the race.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- ARGV     node ms history_size at_once
--          ms: 0 for a hold without an end
--          at_once: the reason of an order for this node, if it leads; or empty
-- returns  answer(candidate | unknown)

local node, ms, history_size, at_once = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local record = load()
local flat = redis.call('HGETALL', KEYS[5])
for i = 1, #flat, 2 do
  if not held_for(flat[i]) then redis.call('HDEL', KEYS[5], flat[i]) end
end
redis.call('HSET', KEYS[5], node, ms == '0' and '0' or whole(now + ms))
if at_once ~= '' and record.holder == node and record.state == 'held' and record.left > 0 then
  redis.call('HSET', KEYS[1], 'asked', at_once, 'asked_for', '')
end
announce(history_size, 'held', node, record.term or 0)
return answer(redis.call('ZSCORE', KEYS[3], node) and 'candidate' or 'unknown')
