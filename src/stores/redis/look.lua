-- KEYS: as everywhere   ARGV: the sid, '' for an anonymous record, ':' for the clears   -> time, value [, payload]
-- One command, and so also in a slot that is being migrated: each command of a pipeline would need an ASKING of its own.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[1] == '' then return {now, redis.call('GET', KEYS[1])} end
if ARGV[1] == ':' then return {now, redis.call('HGET', KEYS[1], '')} end
local found = redis.call('HMGET', KEYS[1], ARGV[1], ARGV[1] .. ':')
return {now, found[1], found[2]}
