-- Read the register. The candidate with the latest contact comes first.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- returns  the server's time in us, then for each candidate
--          {node, last contact, priority, for how many ms it is held or empty, info}

local found = {whole(micros)}
local members = redis.call('ZREVRANGE', KEYS[3], 0, MOST - 1, 'WITHSCORES')
for i = 1, #members, 2 do
  local place, node = members[i], node_of(members[i])
  if #node <= 255 then
    local held = held_for(node)
    local info = redis.call('HGET', KEYS[6], place) or ''
    found[#found + 1] = {node, members[i + 1], whole(priority_of(place)),
                         held and whole(held) or '', #info <= 4096 and info or ''}
  end
end
return found
