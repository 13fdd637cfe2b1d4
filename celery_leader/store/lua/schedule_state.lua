-- Read the state of one entry.
--
-- KEYS     schedule
-- ARGV     entry
-- returns  its state; empty if there is none

return redis.call('HGET', KEYS[1], ARGV[1]) or ''
