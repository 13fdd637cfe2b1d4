-- Count the messages that wait in a leader queue.
--
-- KEYS     see in_flight.lua
-- returns  how many there are

return waiting()
