-- Take one of the slots of a task for a message, or set the message aside until there is one.
--
-- KEYS     see in_flight.lua
-- ARGV     nonce term tag task slots parks suffix
--          parks: 1 if the message is to be set aside where no slot is free
-- returns  taken | busy | parked | lost (another life has the message) | refused | missing

local nonce, term, tag, task = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local slots, parks, suffix = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7]

local refused = refusal(nonce, term)
if refused then return refused end
local each = in_flight(tag)
local value = redis.call('HGET', KEYS[4], tag)
if not each or each.unreadable or each.nonce ~= nonce or not value then return 'lost' end

local taken = 0
for _, slot in ipairs(taken_slots()) do
  if slot.task == task and slot.tag ~= tag and (slot.nonce == nonce or is_kept(slot.nonce)) then
    taken = taken + 1
  end
end
if taken < slots then
  redis.call('HSET', KEYS[7], tag, nonce .. ' ' .. whole(now) .. ' ' .. task)
  redis.call('HDEL', KEYS[7], PLACE .. tag)
  return 'taken'
end
if not parks then return 'busy' end
park(each, task, string.sub(value, 2, -#suffix - 1))
return 'parked'
