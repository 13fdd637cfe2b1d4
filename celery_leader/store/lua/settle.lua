-- Acknowledge messages that a life holds. What was given back meanwhile is not its any more.
--
-- KEYS     see in_flight.lua
-- ARGV     nonce, then delivery tags
-- returns  how many it held

local held = 0
for i = 2, #ARGV do
  local each = in_flight(ARGV[i])
  if each and each.nonce == ARGV[1] then
    settle(each.tag)
    held = held + 1
  end
end
return held
