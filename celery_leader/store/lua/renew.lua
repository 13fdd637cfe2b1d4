-- Keep the lease for another duration.
--
-- KEYS     record history candidates priorities held facts lives in-flight
-- ARGV     nonce attempt term lease_ms priority preempted info
-- returns  answer(refused | missing | damaged), or answer(granted) and then
--          [4] whether the register has the leader's info
--          [5] why the leader is to step down, [6] in favour of which node; or empty
--          [7] when another life of its node was heard of, [8] the info of that life; or empty

local nonce, attempt, term, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local priority, preempted, info = ARGV[5], ARGV[6] == '1', ARGV[7]

local record = load()
if not record.term then return answer(record.damaged and 'damaged' or 'missing') end
if not leads(record, nonce, term) or tonumber(attempt) <= tonumber(record.attempt) then
  return answer('refused')
end
redis.call('HSET', KEYS[1], 'attempt', attempt, 'lease', lease, 'expires_at', whole(now + lease))
-- Grows with the request's number: when an old copy is renewed, no state is ever seen twice.
redis.call('HINCRBY', KEYS[1], 'renewals', attempt - record.attempt)
local place = seen(record.holder, nonce, lease, priority, info)
keep_in_flight(nonce, lease)
local reply = answer('granted')
reply[4] = has_info(place, nonce) and 1 or 0
reply[5], reply[6] = record.asked or '', record.asked_for or ''
if reply[5] == '' and held_for(record.holder) then reply[5] = 'held' end
if reply[5] == '' and preempted then
  local best, highest = foremost(record.holder, lease)
  if best and highest > tonumber(priority) then reply[5], reply[6] = 'outranked', best end
end
reply[7], reply[8] = namesake(place, lease)
return reply
