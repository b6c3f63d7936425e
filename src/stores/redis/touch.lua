-- ARGV: …, end, used, ttl, life, extra   -> 1 | -1 late. The version must be the one that was read.
local record = read(sid)
if not record.is_live or record.version ~= ARGV[3] then return {1, now} end
if is_late then return {-1, now} end
if tonumber(ARGV[7]) <= 0 then
  finish(sid, ARGV[3], {versions = string.sub(record.versions, 9)}, tonumber(ARGV[9]))
  return {1, now}
end
local head = string.sub(record.value, 1, 3) .. ARGV[5] .. ARGV[3] .. ARGV[6]
-- This comes first, so that active users stay signed in even if memory is used up.
if sid == '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[8])
  redis.call('SETRANGE', KEYS[1], 0, head)
else
  redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[8])))
  redis.call('HSET', KEYS[1], sid, head .. string.sub(record.value, 35))
end
return {1, now}
