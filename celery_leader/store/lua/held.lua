-- Read which nodes are kept out of the race, candidates or not.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- returns  the server's time in us, then for each node {node, for how many ms}

local found = {whole(micros)}
for _, node in ipairs(redis.call('HKEYS', KEYS[5])) do
  local held = held_for(node)
  if held and #node <= 255 then found[#found + 1] = {node, whole(held)} end
end
return found
