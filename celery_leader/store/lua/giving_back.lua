-- After slots.lua: how messages in flight go back into their queue. KEYS: see in_flight.lua.

-- Redis does nothing else during a script, so one script gives no more messages back.
local STEP = 500

-- A JSON text with `mark` at the beginning of the object called `name`.
-- A quotation mark inside a text is escaped, so `"name": {` begins that object.
local function with_mark(text, name, mark)
  local _, last = string.find(text, '"' .. name .. '"%s*:%s*{')
  if not last or string.sub(text, last + 1, last + #mark) == mark then return text end
  local rest = string.sub(text, last + 1)
  local comma = string.find(rest, '^%s*}') and '' or ', '
  return string.sub(text, 1, last) .. mark .. comma .. rest
end

local REDELIVERED = '"redelivered": true'

-- Put a message back into its list: in front of the others, or behind them. `suffix` is what
-- kombu's record has after the message. `header` is one more header, or nothing. Returns whether
-- the message was there; nil if it makes no sense.
local function give_back(each, suffix, push, header)
  local value = redis.call('HGET', KEYS[4], each.tag)
  if value then
    if string.sub(value, -#suffix) ~= suffix then return nil end
    -- Pushed before it is removed: Redis takes nothing back when a push is refused.
    local text = string.sub(value, 2, -#suffix - 1)
    if header and not string.find(text, header, 1, true) then
      text = with_mark(text, 'headers', header)
    end
    text = with_mark(with_mark(text, 'headers', REDELIVERED), 'delivery_info', REDELIVERED)
    redis.call(push, each.list, text)
  end
  settle(each.tag)
  leave_slot(each.tag, push == 'LPUSH')
  return value ~= false
end

-- Of these tags, give back the messages that `belongs` says, at most STEP. They end in their order
-- in front of their lists, so the last goes first. Returns how many went, how many are left, and
-- how many make no sense.
local function give_back_all(tags, belongs, suffix, push, header)
  local found, given, damaged = {}, 0, 0
  for _, tag in ipairs(tags) do
    local each = in_flight(tag)
    if each and each.unreadable then
      damaged = damaged + 1
    elseif each and belongs(each) then
      found[#found + 1] = each
    end
  end
  table.sort(found, function(a, b) return a.number > b.number end)
  for i = 1, math.min(#found, STEP) do
    local was_there = give_back(found[i], suffix, push, header)
    if was_there then given = given + 1 elseif was_there == nil then damaged = damaged + 1 end
  end
  return given, math.max(0, #found - STEP), damaged
end
