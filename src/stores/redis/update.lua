-- KEYS: record [index]   ARGV: …, ttl, payload, expected [, again]
-- -> 1 done | 0 gone | 2 conflict, record, ttl | 3 conflict, to be read | -1 late | -2 unreadable | -3 unknown
local older = versions(KEYS[1])
if not older then return {-2, now} end
if knows(older, ARGV[3]) then return {1, now} end
if older == '' or not is_live(KEYS[1], KEYS[2]) then return {0, now} end
if string.sub(older, 1, 8) ~= ARGV[7] then
  -- On a retry it is a conflict only if every write since the expected version is known: if that version is among the last
  -- eight. The ninth is the first version, and the writes after it may be forgotten.
  if ARGV[8] and not knows(string.sub(older, 1, 64), ARGV[7]) then return {-3, now} end
  -- What passes through Lua is copied and hashed. A large record costs half as much when it is read without.
  if redis.call('STRLEN', KEYS[1]) > 32768 then return {3, now} end
  return {2, now, redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
end
if late() then return {-1, now} end
put(KEYS[1], KEYS[2], ARGV[3], older, ARGV[6], tonumber(ARGV[5]))
return {1, now}
