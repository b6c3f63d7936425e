-- KEYS: record [index]   ARGV: …, ttl, payload   -> 1 created | 0 the name is taken | -1 late
local older = versions(KEYS[1])
if not older then return {0, now} end
if knows(older, ARGV[3]) then return {1, now} end
if older ~= '' and is_live(KEYS[1], KEYS[2]) then return {0, now} end
if late() then return {-1, now} end
put(KEYS[1], KEYS[2], ARGV[3], older, ARGV[6], tonumber(ARGV[5]))
if KEYS[2] then
  local dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 16)
  if #dead > 0 then redis.call('ZREM', KEYS[2], unpack(dead)) end
end
return {1, now}
