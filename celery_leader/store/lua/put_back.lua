-- Put messages that a worker received back in front of their queues.
--
-- KEYS     kombu's hash and index of unacknowledged messages, then lists
-- ARGV     for each message: delivery tag, number of its list, text
-- returns  nothing

for i = 1, #ARGV, 3 do
  local tag, list, text = ARGV[i], KEYS[2 + ARGV[i + 1]], ARGV[i + 2]
  -- A message that somebody else has put back is not there any more.
  if redis.call('HGET', KEYS[1], tag) then
    -- Pushed before it is removed: Redis takes nothing back when a push is refused.
    redis.call('RPUSH', list, text)
    redis.call('HDEL', KEYS[1], tag)
    redis.call('ZREM', KEYS[2], tag)
  end
end
