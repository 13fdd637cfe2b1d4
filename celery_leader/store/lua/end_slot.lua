-- A body has ended, or a message is done without one: free its slot, and let the next one go on.
--
-- KEYS     see in_flight.lua
-- ARGV     nonce tag task slots
-- returns  nothing

local nonce, tag, task, slots = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

redis.call('HDEL', KEYS[7], PLACE .. tag)
local free = slots
for _, slot in ipairs(taken_slots()) do
  if slot.tag == tag and slot.nonce == nonce then
    leave_slot(tag, false)
  elseif slot.task == task and (slot.nonce == nonce or is_kept(slot.nonce)) then
    free = free - 1
  end
end
unpark(task, free)
