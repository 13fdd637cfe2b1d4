-- After record.lua: the register of candidates, the holds, and new lines of history.
--
-- KEYS  [1] record  [2] history  [3] candidates  [4] priorities  [5] held  [6] facts  [7] lives
--
-- A node's place in the register is its name. Of several live lives of one node, the latest has
-- that place. Each other life has its own place: the name, a separator, a number.

-- For how many ms a node is kept out; -1 without an end; nil if it is not kept out.
local function held_for(node)
  local till = redis.call('HGET', KEYS[5], node)
  if not till then return nil end
  if #till > 16 or not string.find(till, '^%d+$') or tonumber(till) == 0 then return -1 end
  local left = tonumber(till) - now
  return left > 0 and left or nil
end

-- The public name of a life, made from its secret nonce.
local function life(nonce) return string.sub(redis.sha1hex(nonce), 1, 16) end

-- Redis gives no line a lower time than the line before it. After a line of the far future no new
-- line would have its true time, so such a history is deleted.
local function mend_history()
  if tonumber(string.match(last_line(), '^%d+')) > now + FAR then
    redis.call('PEXPIRE', KEYS[2], 0)
  end
end

-- Write a line of history. Returns its id. A forged line may have the last id that a stream can
-- have; then the history is deleted and begins anew.
local function announce(history_size, kind, node, term, ...)
  local line = {'XADD', KEYS[2], 'MAXLEN', history_size, '*', 'kind', kind, 'node', node,
                'term', term, ...}
  mend_history()
  local id = redis.pcall(unpack(line))
  if type(id) ~= 'table' then return id end
  if string.find(id.err, 'exhausted') then redis.call('PEXPIRE', KEYS[2], 0) end
  return redis.call(unpack(line))
end

local function nth_place(node, number)
  return number == 1 and node or node .. '\31' .. number
end

local function node_of(place) return string.match(place, '^[^\31]*') end

local function forget(place)
  redis.call('ZREM', KEYS[3], place)
  redis.call('HDEL', KEYS[4], place)
  redis.call('HDEL', KEYS[6], place)
end

-- Whether this life wrote the info at a place; nil if there is none.
local function owns(place, nonce)
  local info = redis.call('HGET', KEYS[6], place)
  if not info then return nil end
  return string.sub(info, 1, #nonce + 1) == nonce .. '|'
end

local function has_info(place, nonce)
  local info = owns(place, nonce) and redis.call('HGET', KEYS[6], place)
  return info and #info > #nonce + 1
end

local function lives(place, lease)
  local at = tonumber(redis.call('ZSCORE', KEYS[3], place) or nil)
  return at and at >= now - 1.5 * lease and at <= now + 3 * lease and at
end

-- The place of a life, and whether that life has it already. `new`: this request brings info.
local function place_of(node, nonce, lease, new)
  local own
  for number = 1, LIVES do
    if owns(nth_place(node, number), nonce) then own = number break end
  end
  if own == 1 or not own and new then return node, own == 1 end
  if not own and owns(node, nonce) == nil then return node, false end
  for number = 1, (own or LIVES) - 1 do
    local place = nth_place(node, number)
    if not lives(place, lease) then
      if own then forget(nth_place(node, own)) end
      return place, false
    end
  end
  return nth_place(node, own or LIVES), own ~= nil
end

-- Keep for a life what it has in flight, for so many ms more. A leader renews its lease more often
-- than it has to, and a killed one must not keep anything once its lease is over. A follower asks
-- again only when the leader's lease may be over.
local function keep_in_flight(nonce, ms)
  local kept = redis.call('HGET', KEYS[7], nonce)
  if kept then
    redis.call('HSET', KEYS[7], nonce, whole(now + ms) .. ' ' .. (string.match(kept, '%d+$') or 0))
  end
end

-- Note that a life was heard of, and forget lives that were not heard of for long. Returns the
-- life's place.
local function seen(node, nonce, lease, priority, info)
  mend_history()
  local place, own = place_of(node, nonce, lease, info ~= '')
  redis.call('ZADD', KEYS[3], now, place)
  if tonumber(priority) == 0 then
    redis.call('HDEL', KEYS[4], place)
  else
    redis.call('HSET', KEYS[4], place, priority)
  end
  if info ~= '' or not own and (place ~= node or owns(place, nonce) ~= nil) then
    redis.call('HSET', KEYS[6], place, nonce .. '|' .. info)
  end
  -- Times in the future go too: no contact can have made them.
  for _, range in ipairs({{'-inf', now - 3 * lease}, {'(' .. now + 3 * lease, '+inf'}}) do
    for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], range[1], range[2],
                                     'LIMIT', 0, 100)) do
      forget(gone)
    end
  end
  for _, over in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1 - MOST)) do forget(over) end
  for i = 3, 6 do
    if i ~= 5 then redis.call('PEXPIRE', KEYS[i], 3 * lease) end
  end
  return place
end

-- When another life of this node was last heard of, and its info; empty if there is none.
local function namesake(place, lease)
  local node = node_of(place)
  local other = place == node and nth_place(node, 2) or node
  local at = lives(other, lease)
  if not at then return '', '' end
  local info = redis.call('HGET', KEYS[6], other) or ''
  return whole(at), #info <= 4096 and info or ''
end

-- Stands in place of a priority: this candidate abstains.
local ABSTAINS = '-1001'
local function abstaining(place) return redis.call('HGET', KEYS[4], place) == ABSTAINS end

local function priority_of(place)
  local priority = tonumber(redis.call('HGET', KEYS[4], place)) or 0
  -- Anything that is not a priority counts as 0.
  return math.abs(priority) <= 1000 and priority or 0
end

-- Of the other live candidates that are not held and do not abstain: the one with the highest
-- priority, that priority, and the lowest priority. nil if there is no such candidate, and also if
-- no candidate at all has a priority other than 0.
local function foremost(node, lease)
  if redis.call('EXISTS', KEYS[4]) == 0 then return nil end
  local best, highest, lowest
  local live = redis.call('ZREVRANGEBYSCORE', KEYS[3], now + 3 * lease, now - 1.5 * lease)
  for _, each in ipairs(live) do
    local name = node_of(each)
    if name ~= node and #name <= 255 and not held_for(name) and not abstaining(each) then
      local priority = priority_of(each)
      if not highest or priority > highest then best, highest = name, priority end
      if not lowest or priority < lowest then lowest = priority end
    end
  end
  return best, highest, lowest
end
