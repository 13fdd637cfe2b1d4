-- Dispatch a tick: check the lease, claim the tick, write the state, push the message.
--
-- KEYS     record, schedule, each list that is pushed to. A topic is no key, and a Redis user has
--          no rights to it as a key.
-- ARGV     nonce term entry old_state new_state, then for each push: command target value
-- returns  {sent | repeated | claimed | refused | missing}, then for each refused push
--          {command, target, error}

local nonce, term, entry, old, new = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local refused = refusal(nonce, term)
if refused then return {refused} end
local state = redis.call('HGET', KEYS[2], entry) or ''
if state == new then return {'repeated'} end
if state ~= old then return {'claimed'} end
-- A later list that is a key of another type fails here, before anything is written.
for i = 9, #ARGV, 3 do if ARGV[i] == 'LPUSH' then redis.call('LLEN', ARGV[i + 1]) end end
-- Redis takes nothing back when a script fails. The state comes first, since it can be put back.
redis.call('HSET', KEYS[2], entry, new)
local function failed(reply) return type(reply) == 'table' and reply.err end
local told = {'sent'}
for i = 6, #ARGV, 3 do
  local reply = redis.pcall(ARGV[i], ARGV[i + 1], ARGV[i + 2])
  if failed(reply) and i == 6 then
    if state ~= '' or failed(redis.pcall('HDEL', KEYS[2], entry)) then
      redis.call('HSET', KEYS[2], entry, state)
    end
    return reply
  elseif failed(reply) then
    -- A part of the message is out, so this tick is sent, and is never sent again.
    told[#told + 1] = {ARGV[i], ARGV[i + 1], reply.err}
  end
end
return told
