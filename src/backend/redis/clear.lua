-- KEYS: index, last clear   ARGV: …   -> 1, how many, members | -1 late. The sid is the one to keep, or empty.
local last = redis.call('GET', KEYS[2])
if last and string.sub(last, 1, 8) == ARGV[3] then return {1, now, tonumber(string.sub(last, 9)), {}} end
if late() then return {-1, now} end
local members = redis.call('ZRANGE', KEYS[1], 0, -1)
local ended = redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
local kept = ARGV[4] ~= '' and redis.call('ZSCORE', KEYS[1], ARGV[4])
redis.call('UNLINK', KEYS[1])
if kept and tonumber(kept) > now then
  ended = ended - 1
  enter(KEYS[1], tonumber(kept) - now)
end
redis.call('SET', KEYS[2], ARGV[3] .. string.format('%.0f', ended), 'PX', KEEP)
return {1, now, ended, members}
