-- The beginning of every script on an election: the time, the record, the fence, the answer.
--
-- KEYS  [1] the record
--       [2] the history, where last_line() or answer() is called
--
-- `scripts.py` writes these constants in front: FORMAT, FAR, LONGEST_LEASE, MOST, LIVES, DAMAGED.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = time[1] * 1000000 + time[2]

local FIELDS = {'holder', 'nonce', 'attempt', 'term', 'expires_at', 'lease', 'state', 'successor',
                'renewals', 'transitions', 'elected_at', 'app', 'event', 'asked', 'asked_for',
                'format'}
local REQUIRED = 13
-- `held`: the holder has the lease. (A *node* that is held is kept out of the race.)
local STATES = {held = true, released = true, reserved = true}
-- No candidate can have written more than these limits.
local LIMIT = {attempt = 1e12, renewals = 1e12, transitions = 1e12, lease = LONGEST_LEASE,
               term = micros + 1000 * FAR, expires_at = now + FAR, elected_at = now + FAR}

-- A number in full, because tostring() would write a term as 1.79e+15.
local function whole(number) return string.format('%.0f', number) end

local function sound(field, value)
  if #value > 1000 then return false end
  local limit = LIMIT[field]
  return not limit or #value <= 16 and string.find(value, '^%d+$') and tonumber(value) <= limit
end

-- The record, with `left`: how many ms the lease still runs. A record that no candidate can have
-- written has no field but `damaged` and `left`: it proves nothing.
local function load()
  local values, record, found, good = redis.call('HMGET', KEYS[1], unpack(FIELDS)), {}, 0, true
  for i, field in ipairs(FIELDS) do
    local value = values[i]
    record[field] = value
    if value then
      if i <= REQUIRED then found = found + 1 end
      good = good and sound(field, value)
    end
  end
  if record.state and not STATES[record.state] then
    -- A state of a later version: nobody may have the lease before it has run out.
    if not ((tonumber(record.format) or 0) > FORMAT) then good = false end
    record.state = 'held'
  end
  good = good and (found == 0 or found == REQUIRED) and record.lease ~= '0'
  if not good then return {damaged = true, left = 0} end
  record.left = (tonumber(record.expires_at) or 0) - now
  return record
end

-- The record for people: a damaged record is an error that says so.
local function shown()
  local record = load()
  if record.damaged then error(DAMAGED) end
  return record
end

-- The fence: whether this life has this lease, with this term, at this moment.
local function leads(record, nonce, term)
  return record.nonce == nonce and tonumber(record.term) == tonumber(term)
         and record.state == 'held' and record.left > 0
end

-- Why a leader must not write; nil if it may, and then the record. A record that is gone, or older
-- than the leader's term, is `missing`: that does not prove that another leads.
local function refusal(nonce, term)
  local record = load()
  if not record.term or tonumber(record.term) < tonumber(term) then return 'missing' end
  if not leads(record, nonce, term) then return 'refused' end
  return nil, record
end

local function last_line()
  -- A candidate needs no history to be answered: a key of another type counts as empty.
  local last = redis.pcall('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
  return last[1] and last[1][1] or '0-0'
end

-- {what, the server's time in us, {the record's fields ..., the id of the last line}}
local function answer(what)
  local fields = redis.call('HMGET', KEYS[1], unpack(FIELDS))
  fields[#FIELDS + 1] = last_line()
  return {what, whole(micros), fields}
end
