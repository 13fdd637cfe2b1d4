-- Count the messages that the present entries have sent.
--
-- KEYS     schedule
-- returns  the number, as text

local flat, sent = redis.call('HGETALL', KEYS[1]), 0
for i = 2, #flat, 2 do
  local told = string.match(flat[i], '"total_run_count": (%d+)')
  -- Anybody with access to Redis can write any number: one with too many digits does not count.
  if told and #told < 13 then sent = sent + tonumber(told) end
end
return string.format('%.0f', sent)
