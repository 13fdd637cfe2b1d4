-- After in_flight.lua: how many bodies of one task run at once. KEYS: see there.
--
-- `slots`: delivery tag to "nonce ms task": which body has one of the slots of its task, and since
-- when. A task with `max_running` has so many. `parked`: the messages that wait for a slot, as
-- "task list place text" in the order of these bytes; each score is 0. A message that is put back
-- into its list has its place in the field 'place of <tag>' of `slots`, until it gets a slot.

local SEPARATOR = '\31'
local PLACE = 'place of '

local function is_kept(nonce)
  local till = string.match(redis.call('HGET', KEYS[2], nonce) or '', '^(%d+) ')
  return till ~= nil and tonumber(till) > now
end

-- Each slot that is taken.
local function taken_slots()
  local slots, flat = {}, redis.call('HGETALL', KEYS[7])
  for i = 1, #flat, 2 do
    local nonce, task = string.match(flat[i + 1], '^(%S+) %d+ (.*)$')
    if nonce then slots[#slots + 1] = {tag = flat[i], nonce = nonce, task = task} end
  end
  return slots
end

-- Set a message aside until there is a slot for it. `text` is the message.
local function park(each, task, text)
  local place = tonumber(redis.call('HGET', KEYS[7], PLACE .. each.tag) or each.number)
  local as = {task, string.format('%03d', each.nth_list), string.format('%016.0f', place), text}
  -- Written before it is removed: Redis takes nothing back when a write is refused.
  redis.call('ZADD', KEYS[8], 0, table.concat(as, SEPARATOR))
  settle(each.tag)
end

-- Put the first parked messages of a task in front of their lists, at most so many.
local function unpark(task, most)
  if most < 1 then return end
  local found = redis.call('ZRANGE', KEYS[8], '[' .. task .. SEPARATOR, '(' .. task .. '\32', 'BYLEX',
                           'LIMIT', 0, most)
  for i = #found, 1, -1 do
    local from = #task + 2
    local list, place = string.sub(found[i], from, from + 2), string.sub(found[i], from + 4, from + 19)
    local text = string.sub(found[i], from + 21)
    local tag = string.match(text, '"delivery_tag"%s*:%s*"([^"]*)"')
    if tag then redis.call('HSET', KEYS[7], PLACE .. tag, tonumber(place)) end
    redis.call('RPUSH', KEYS[FIRST_LIST - 1 + tonumber(list)] or KEYS[FIRST_LIST], text)
    redis.call('ZREM', KEYS[8], found[i])
  end
end

-- Free a slot. `next`: the first parked message of its task may go on.
local function leave_slot(tag, next)
  local value = redis.call('HGET', KEYS[7], tag)
  if value then
    redis.call('HDEL', KEYS[7], tag)
    if next then unpark(string.match(value, '^%S+ %d+ (.*)$') or '', 1) end
  end
end

-- Free the slots of lives that nobody keeps anything for, after what they held was given back, which
-- frees slots, too. So one that is still here is of a message that was acknowledged early.
local function leave_dead_slots(nonce)
  for _, slot in ipairs(taken_slots()) do
    if slot.nonce ~= nonce and not is_kept(slot.nonce) then leave_slot(slot.tag, true) end
  end
end

-- Put a parked message of each task that has no slot back. Mostly there is none, since who ends
-- a body sees to the next one. `most`: how many tasks are looked at.
local function unpark_forgotten(most)
  local busy = {}
  for _, slot in ipairs(taken_slots()) do busy[slot.task] = true end
  local from = '-'
  for _ = 1, most do
    local found = redis.call('ZRANGE', KEYS[8], from, '+', 'BYLEX', 'LIMIT', 0, 1)[1]
    local task = found and string.match(found, '^(.-)' .. SEPARATOR)
    if not task then return end
    if not busy[task] then unpark(task, 1) end
    from = '[' .. task .. '\32'
  end
end
