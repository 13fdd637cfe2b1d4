-- Read what waits in a leader queue and what is in flight, for people. Writes nothing.
--
-- KEYS     see in_flight.lua
-- ARGV     most_lines most_messages
--          most_lines: of the in-flight key, about so many lines are read
--          most_messages: of those, the longest held are looked up
-- returns  {the server's time in us, waiting, in flight, unreadable, damaged lines,
--          {{node, life, heard of (1 or 0), messages, fetched_ms of the first} ...},
--          {{node, life, fetched_ms, task, id, eta} ...}}
--
-- How long a message has waited is unknown: Celery's messages do not say when they were sent.

local most_lines, most_messages = tonumber(ARGV[1]), tonumber(ARGV[2])

local LARGE = 1048576  -- bytes; a larger message is not decoded, because Redis would stand still

local function text_in(object, field)
  local value = type(object) == 'table' and object[field]
  return type(value) == 'string' and #value <= 255 and value or ''
end

-- The task of a message, its id and its ETA, as far as they can be read.
local function task_of(tag)
  local record = redis.call('HGET', KEYS[4], tag)
  local sound, decoded = false, nil
  if record and #record <= LARGE then sound, decoded = pcall(cjson.decode, record) end
  local message = sound and type(decoded) == 'table' and decoded[1]
  local headers = type(message) == 'table' and message.headers
  return text_in(headers, 'task'), text_in(headers, 'id'), text_in(headers, 'eta')
end

local held, damaged = {}, 0
local flat = redis.call('HSCAN', KEYS[3], 0, 'COUNT', most_lines)[2]
for i = 1, #flat, 2 do
  local each = read_line(flat[i], flat[i + 1])
  if each.unreadable or #each.node > 255 or #each.fetched > 15 then
    damaged = damaged + 1
  else
    held[#held + 1] = each
  end
end
table.sort(held, function(a, b) return a.number < b.number end)

local holders, by_nonce = {}, {}
for _, each in ipairs(held) do
  local holder = by_nonce[each.nonce]
  if not holder then
    -- The public name of a life, as register.lua makes it of the secret nonce.
    local life = string.sub(redis.sha1hex(each.nonce), 1, 16)
    holder = {each.node, life, is_kept(each.nonce) and 1 or 0, 0, each.fetched}
    by_nonce[each.nonce] = holder
    holders[#holders + 1] = holder
  end
  holder[4] = holder[4] + 1
end

local longest = {}
for i = 1, math.min(#held, most_messages) do
  local each = held[i]
  longest[i] = {each.node, by_nonce[each.nonce][2], each.fetched, task_of(each.tag)}
end

return {whole(micros), waiting(), redis.call('HLEN', KEYS[3]), redis.call('LLEN', KEYS[6]),
        damaged, holders, longest}
