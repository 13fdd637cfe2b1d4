-- Let a node into the race again.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- ARGV     node history_size
-- returns  answer(freed | free)

local node, history_size = ARGV[1], ARGV[2]

local record, held = load(), held_for(node)
redis.call('HDEL', KEYS[5], node)
if not held then return answer('free') end
announce(history_size, 'freed', node, record.term or 0)
return answer('freed')
