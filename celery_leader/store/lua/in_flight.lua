-- After record.lua: the messages of a leader queue that were fetched and are not settled.
--
-- KEYS  [1] record  [2] lives  [3] in-flight  [4] kombu's hash of unacknowledged messages, and
--       [5] its index  [6] unreadable, then the queue's lists, the highest priority first
--
-- `lives`: nonce to "ms connection": until when what this life holds is kept for it, and its latest
-- connection. `in-flight`: delivery tag to "number list fetched_ms nonce node", where the number
-- says in which order messages were fetched.
--
-- The message itself is in kombu's hash, as kombu writes it, so that kombu can acknowledge it. It
-- is not in kombu's index: kombu's visibility timeout would deliver it a second time.

local FIRST_LIST = 7
-- Redis does nothing else during a script, so one script gives no more messages back.
local STEP = 500

-- What a line of the in-flight key says of the message with this tag.
local function read_line(tag, value)
  local number, list, fetched, nonce, node = string.match(value, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
  local at = FIRST_LIST - 1 + (tonumber(list) or 0)
  if at < FIRST_LIST or at > #KEYS or #number > 15 then return {unreadable = true} end
  return {tag = tag, number = tonumber(number), list = KEYS[at], fetched = fetched, nonce = nonce,
          node = node}
end

local function in_flight(tag)
  local value = redis.call('HGET', KEYS[3], tag)
  return value and read_line(tag, value) or nil
end

-- How many messages wait in the queue.
local function waiting()
  local count = 0
  for list = FIRST_LIST, #KEYS do count = count + redis.call('LLEN', KEYS[list]) end
  return count
end

local function settle(tag)
  redis.call('HDEL', KEYS[4], tag)
  redis.call('ZREM', KEYS[5], tag)
  redis.call('HDEL', KEYS[3], tag)
end

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
