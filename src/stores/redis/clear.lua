-- KEYS: index, clears   ARGV: …   -> 1, count, members | -1 late. The sid is the one to keep, or empty.
-- The second key holds the last eight clears: the nonce, and the count in eight digits.
local last = redis.call('GET', KEYS[2]) or ''
for at = 1, #last, 16 do
  if string.sub(last, at, at + 7) == ARGV[3] then return {1, now, tonumber(string.sub(last, at + 8, at + 15)), {}} end
end
if late() then return {-1, now} end
local members = redis.call('ZRANGE', KEYS[1], 0, -1)
local ended = redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
local kept = ARGV[4] ~= '' and redis.call('ZSCORE', KEYS[1], ARGV[4])
redis.call('UNLINK', KEYS[1])
if kept and tonumber(kept) > now then
  ended = ended - 1
  enter(KEYS[1], tonumber(kept) - now)
end
redis.call('SET', KEYS[2], string.sub(ARGV[3] .. string.format('%08d', ended) .. last, 1, 128), 'PX', KEEP)
return {1, now, ended, members}
