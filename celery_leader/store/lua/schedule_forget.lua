-- Remove fields of the schedule or of its projects.
--
-- KEYS     record, hash
-- ARGV     nonce term field...
-- returns  sent | refused | missing

local refused = refusal(ARGV[1], ARGV[2])
if refused then return refused end
for i = 3, #ARGV do redis.call('HDEL', KEYS[2], ARGV[i]) end
return 'sent'
