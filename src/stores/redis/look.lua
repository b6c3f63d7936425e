-- KEYS: as everywhere   ARGV: the sid, '' for a visitor's record, ':' for the clears   -> time, value [, payload]
-- This is one command, so it also works in a slot that is being migrated. In a pipeline each command would need its own ASKING.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[1] == '' then return {now, redis.call('GET', KEYS[1])} end
if ARGV[1] == ':' then return {now, redis.call('HGET', KEYS[1], '')} end
local found = redis.call('HMGET', KEYS[1], ARGV[1], ARGV[1] .. ':')
return {now, found[1], found[2]}
