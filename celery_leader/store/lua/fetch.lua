-- Fetch messages from a leader queue, once everything is back that dead lives held.
--
-- KEYS     see in_flight.lua
-- ARGV     nonce term node connection most suffix all_lives
--          all_lives: 1 if lives that `lives` does not know are to be looked for, too
-- returns  {fetched, given back, left to give back, damaged, unreadable, number of the list that
--          the last message came from, message ...} | {refused | missing | replaced}

local TASKS = 20 -- with parked messages that one fetch looks at

local nonce, term, node, connection = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local most, suffix, all_lives = tonumber(ARGV[5]), ARGV[6], ARGV[7] == '1'

local refused, record = refusal(nonce, term)
if refused then return {refused} end
local known = redis.call('HGET', KEYS[2], nonce)
if known and tonumber(string.match(known, ' (%d+)$') or 0) > tonumber(connection) then
  return {'replaced'}
end

-- First what dead lives held.
local lives, dead = {}, {}
local flat = redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do
  lives[flat[i]] = true
  if flat[i] ~= nonce and flat[i] ~= 'fetched' then
    local till = tonumber(string.match(flat[i + 1], '^(%d+) ') or 0)
    if till <= now then
      dead[#dead + 1] = flat[i]
      lives[flat[i]] = nil
    end
  end
end
local given, left, damaged = 0, 0, 0
if all_lives or #dead > 0 then
  local function is_dead(each) return each.nonce ~= nonce and not lives[each.nonce] end
  local tags = redis.call('HKEYS', KEYS[3])
  given, left, damaged = give_back_all(tags, is_dead, suffix, 'RPUSH')
  if left == 0 then
    for _, each in ipairs(dead) do redis.call('HDEL', KEYS[2], each) end
    leave_dead_slots(nonce)
  end
end
local reply = {'fetched', given, left, damaged, 0, 0}
if left > 0 then return reply end

local parked = redis.call('ZCARD', KEYS[8])
if parked > 0 and (all_lives or waiting() == parked) then unpark_forgotten(TASKS) end

local function tag_of(text)
  local sound, message = pcall(cjson.decode, text)
  local properties = sound and type(message) == 'table' and message.properties
  local tag = type(properties) == 'table' and properties.delivery_tag
  return type(tag) == 'string' and tag ~= '' and tag
end

-- What it holds is kept for it as long as its lease; each renewal prolongs both.
local kept = record.expires_at .. ' ' .. connection
if known ~= kept then redis.call('HSET', KEYS[2], nonce, kept) end
-- Redis does nothing else meanwhile, and 1 MB takes some 20 ms. One message is fetched of any size.
local MOST_BYTES, bytes = 1000000, 0
for list = FIRST_LIST, #KEYS do
  while #reply < 6 + most and bytes < MOST_BYTES do
    local text = redis.call('LINDEX', KEYS[list], -1)
    if not text then break end
    bytes = bytes + #text
    local tag = tag_of(text)
    -- Written before it is popped: Redis takes nothing back when a write is refused.
    if tag then
      local number = whole(redis.call('HINCRBY', KEYS[2], 'fetched', 1))
      -- A topic may have put one message, with one tag, into several leader queues.
      if redis.call('HGET', KEYS[4], tag) then
        local first, last = string.find(text, '"' .. tag .. '"', 1, true)
        tag = tag .. '.' .. number
        text = string.sub(text, 1, first) .. tag .. string.sub(text, last)
      end
      redis.call('HSET', KEYS[3], tag, number .. ' ' .. list - FIRST_LIST + 1 .. ' ' .. whole(now)
                                       .. ' ' .. nonce .. ' ' .. node)
      redis.call('HSET', KEYS[4], tag, '[' .. text .. suffix)
      reply[#reply + 1] = text
      reply[6] = list - FIRST_LIST + 1
    else
      redis.call('LPUSH', KEYS[6], text)
      reply[5] = reply[5] + 1
    end
    redis.call('RPOP', KEYS[list])
  end
end
return reply
