-- KEYS: record [index]   ARGV: …, ttl   -> 1 | -1 late. The nonce is the version that was read.
local older = versions(KEYS[1])
if not older or string.sub(older, 1, 8) ~= ARGV[3] or not is_live(KEYS[1], KEYS[2]) then return {1, now} end
if late() then return {-1, now} end
local ttl = tonumber(ARGV[5])
if ttl <= 0 then
  finish(KEYS[1], KEYS[2], ARGV[3], string.sub(older, 9))
else
  redis.call('PEXPIRE', KEYS[1], ttl + KEEP)
  if KEYS[2] then enter(KEYS[2], ttl) end
end
return {1, now}
