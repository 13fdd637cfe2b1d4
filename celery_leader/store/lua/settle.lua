-- Acknowledge messages that a life holds. What was given back meanwhile is not its any more.
--
-- KEYS     see in_flight.lua
-- ARGV     nonce, then delivery tags
-- returns  the tags of the others

local others = {}
for i = 2, #ARGV do
  local each = in_flight(ARGV[i])
  if each and each.nonce == ARGV[1] then
    settle(each.tag)
  else
    others[#others + 1] = ARGV[i]
  end
end
return others
