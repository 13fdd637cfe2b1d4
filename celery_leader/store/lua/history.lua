-- Read the record and the last lines of history.
--
-- KEYS     record history
-- ARGV     most
-- returns  answer(record | missing), then [4] at most so many lines, the latest first

local reply = answer(shown().term and 'record' or 'missing')
reply[4] = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[1])
return reply
