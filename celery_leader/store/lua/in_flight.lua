-- After record.lua: the messages of a leader queue that were fetched and are not settled.
--
-- KEYS  [1] record  [2] lives  [3] in-flight  [4] kombu's hash of unacknowledged messages, and
--       [5] its index  [6] unreadable  [7] slots  [8] parked, then the queue's lists, the highest
--       priority first
--
-- `lives`: nonce to "ms connection": until when what this life holds is kept for it, and its latest
-- connection. `in-flight`: delivery tag to "number list fetched_ms nonce node", where the number
-- says in which order messages were fetched.
--
-- The message itself is in kombu's hash, as kombu writes it, so that kombu can acknowledge it. It
-- is not in kombu's index: kombu's visibility timeout would deliver it a second time.

local FIRST_LIST = 9

-- What a line of the in-flight key says of the message with this tag.
local function read_line(tag, value)
  local number, list, fetched, nonce, node = string.match(value, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
  local at = FIRST_LIST - 1 + (tonumber(list) or 0)
  if at < FIRST_LIST or at > #KEYS or #number > 15 then return {unreadable = true} end
  return {tag = tag, number = tonumber(number), list = KEYS[at], nth_list = tonumber(list),
          fetched = fetched, nonce = nonce, node = node}
end

local function in_flight(tag)
  local value = redis.call('HGET', KEYS[3], tag)
  return value and read_line(tag, value) or nil
end

-- How many messages wait in the queue, and for a slot.
local function waiting()
  local count = redis.call('ZCARD', KEYS[8])
  for list = FIRST_LIST, #KEYS do count = count + redis.call('LLEN', KEYS[list]) end
  return count
end

local function settle(tag)
  redis.call('HDEL', KEYS[4], tag)
  redis.call('ZREM', KEYS[5], tag)
  redis.call('HDEL', KEYS[3], tag)
end
