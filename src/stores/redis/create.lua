-- KEYS: record [index [clears]]   ARGV: …, ttl, payload [, age] [, again]
-- -> 1 created | 0 the name is taken | 4 cleared since | -1 late | -3 unknown
-- The clears are there if the age is: that of the request, in microseconds. They begin with the time of the last clear.
local age, again = tonumber(ARGV[7]), ARGV[7] == 'again' or ARGV[8] == 'again'
local older = versions(KEYS[1])
local there = older ~= '' and is_live(KEYS[1], KEYS[2])
-- A duplicate is told that it was created, even if it has ended since. A caller that asks again must not take it for live.
local known = older and knows(older, ARGV[3])
if known and (there or not again) then return {1, now} end
if late() then return {-1, now} end
if age and age > 900000000 then return {4, now} end
local clears = age and KEYS[3] and redis.call('GET', KEYS[3])
if clears then
  local micros = time[1] * 1000000 + time[2]
  local at = tonumber(string.sub(clears, 1, 16)) or micros
  if at > micros then
    -- The clock was set back, so the time of the clear is unknown. What came before is late, and what comes from now on is not.
    at = micros
    redis.call('SET', KEYS[3], string.format('%016.0f', at) .. string.sub(clears, 17), 'KEEPTTL')
  end
  if micros - at < age then return {4, now} end
end
if known then return {-3, now} end
if not older or there then return {0, now} end
put(KEYS[1], KEYS[2], ARGV[3], older, ARGV[6], tonumber(ARGV[5]))
if KEYS[2] then
  local dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 16)
  if #dead > 0 then redis.call('ZREM', KEYS[2], unpack(dead)) end
end
return {1, now}
