-- Delete an election in which nobody takes part.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- ARGV     lease_ms
-- returns  {forgotten | unknown} | {lives, node, ms since it was heard of} | {kept, node, ms left}
--          | {holds, number of messages}

local record = load()
local lease = math.max(tonumber(record.lease) or 0, tonumber(ARGV[1]))
local heard = redis.call('ZREVRANGEBYSCORE', KEYS[3], now + 3 * lease, now - 3 * lease,
                         'WITHSCORES', 'LIMIT', 0, 1)
if heard[1] then
  return {'lives', node_of(heard[1]), whole(math.max(0, now - heard[2]))}
end
if record.term and record.state ~= 'released' and record.left > -lease then
  local node = record.state == 'held' and record.holder or record.successor
  return {'kept', node, whole(record.left + lease)}
end
local messages = #redis.call('HKEYS', KEYS[8])
if messages > 0 then return {'holds', messages} end
-- PEXPIRE with 0 deletes the key, and a Redis user has the right to it already, unlike DEL.
local gone = 0
for i = 1, 7 do gone = gone + redis.call('PEXPIRE', KEYS[i], 0) end
return {gone > 0 and 'forgotten' or 'unknown'}
