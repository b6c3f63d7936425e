-- KEYS: index, clears [, record]   ARGV: …, keep, version
-- -> 1 done, count, members | 0 gone | 2 conflict, record, ttl | 3 conflict, to be read | -1 late | -2 unreadable
-- The record is the one that it is made by. It must have that version, and is spared if keep is '1'. The nonce is the name of
-- the clear. The second key holds the time of the last clear in microseconds, in sixteen digits, and the last eight clears: the
-- name, and the count in eight digits.
local last = redis.call('GET', KEYS[2]) or ''
for at = 17, #last, 16 do
  if string.sub(last, at, at + 7) == ARGV[3] then return {1, now, tonumber(string.sub(last, at + 8, at + 15)), {}} end
end
if KEYS[3] then
  local older = versions(KEYS[3])
  if not older then return {-2, now} end
  if older == '' or not is_live(KEYS[3], KEYS[1]) then return {0, now} end
  if string.sub(older, 1, 8) ~= ARGV[6] then
    if redis.call('STRLEN', KEYS[3]) > 32768 then return {3, now} end
    return {2, now, redis.call('GET', KEYS[3]), redis.call('PTTL', KEYS[3])}
  end
end
if late() then return {-1, now} end
local members = redis.call('ZRANGE', KEYS[1], 0, -1)
local ended = redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
local kept = ARGV[5] == '1' and redis.call('ZSCORE', KEYS[1], ARGV[4])
redis.call('UNLINK', KEYS[1])
if kept then
  ended = ended - 1
  enter(KEYS[1], tonumber(kept) - now)
end
local all = string.sub(ARGV[3] .. string.format('%08d', ended) .. string.sub(last, 17), 1, 128)
-- For longer than the fifteen minutes that a create can look back.
redis.call('SET', KEYS[2], string.format('%016.0f', time[1] * 1000000 + time[2]) .. all, 'PX', 960000)
return {1, now, ended, members}
