-- Read the record.
--
-- KEYS     record history
-- returns  answer(record | missing)

return answer(shown().term and 'record' or 'missing')
