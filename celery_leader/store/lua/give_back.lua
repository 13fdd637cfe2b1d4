-- Give back messages that a life holds.
--
-- KEYS     see in_flight.lua
-- ARGV     nonce suffix push connection header, then delivery tags
--          push: RPUSH to put them in front of their lists, LPUSH to put them behind
--          connection: a number, for all but these messages; a fetch over an earlier connection is
--          refused from now on. Empty: for these messages only
--          LAST: the life fetches no more, and is forgotten when it holds nothing
--          header: a header that the messages then have, as JSON; empty: none
-- returns  {given back, left to give back, damaged}

local nonce, suffix, push, connection = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local header = ARGV[5] ~= '' and ARGV[5]

local LAST = '9007199254740992'
local tags, named = {}, {}
for i = 6, #ARGV do
  tags[#tags + 1] = ARGV[i]
  named[ARGV[i]] = true
end

local function is_named(each) return each.nonce == nonce end
local function is_another(each) return each.nonce == nonce and not named[each.tag] end
if connection == '' then return {give_back_all(tags, is_named, suffix, push, header)} end

local known = redis.call('HGET', KEYS[2], nonce)
local till = known and string.match(known, '^%d+') or '0'
redis.call('HSET', KEYS[2], nonce, till .. ' ' .. connection)
local given, left, damaged = give_back_all(redis.call('HKEYS', KEYS[3]), is_another, suffix, push)
if connection == LAST and left == 0 and #tags == 0 then
  redis.call('HDEL', KEYS[2], nonce)
  -- The numbers begin anew only where nothing has a place that was counted with them.
  if redis.call('EXISTS', KEYS[3], KEYS[7], KEYS[8]) == 0 then
    redis.call('HDEL', KEYS[2], 'fetched')
  end
end
return {given, left, damaged}
