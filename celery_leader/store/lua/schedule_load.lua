-- Read the whole schedule.
--
-- KEYS     schedule projects
-- returns  the server's time in us, {entry, state, ...}, {project id, project, ...}

local time = redis.call('TIME')
return {string.format('%.0f', time[1] * 1000000 + time[2]), redis.call('HGETALL', KEYS[1]),
        redis.call('HGETALL', KEYS[2])}
