-- ARGV: …, value, payload, life, named [, age] [, again]
-- -> 1 created | 6 the same, in place of a key of another type | 0 the name is taken | 4 cleared since
--  | 5 there was a clear just now, its name | -1 late | -3 unknown
-- The age is that of the request, in microseconds.
local age, again = tonumber(ARGV[9]), ARGV[9] == 'again' or ARGV[10] == 'again'
local is_replaced = redis.call('TYPE', KEYS[1]).ok
is_replaced = is_replaced ~= 'none' and is_replaced ~= (sid == '' and 'string' or 'hash')
local record = is_replaced and {} or read(sid)
local known = knows(record, ARGV[3])
-- A duplicate is told that it was created, even if it has ended since. A caller that asks again must not take it for live.
if known and (record.is_live or not again) then return {1, now} end
if is_late then return {-1, now} end
if age and age > 900000000 then return {4, now} end
local clears = sid ~= '' and not is_replaced and redis.call('HGET', KEYS[1], '')
if clears then
  local micros = time[1] * 1000000 + time[2]
  local at, name = tonumber(string.sub(clears, 1, 16)) or micros, string.sub(clears, 17, 24)
  if age then
    if at > micros then
      -- The clock was set back, so the time of the clear is unknown. What came before is late, and what comes from now on is not.
      at = micros
      redis.call('HSET', KEYS[1], '', string.format('%016.0f', at) .. string.sub(clears, 17))
    end
    if micros - at < age then return {4, now} end
  end
  -- A duplicate of a create from before the clear does not name it. No clock decides that.
  if (at > micros or micros - at < 5000000) and ARGV[8] ~= name then
    if again then return {-3, now} end
    return {5, now, name}
  end
end
if known then return {-3, now} end
if record.is_live or record.is_foreign then return {0, now} end
if is_replaced then redis.call('UNLINK', KEYS[1]) end
put(sid, with_older(ARGV[5], older(record)), ARGV[6], ARGV[7], record)
-- The dead make room.
if sid ~= '' and redis.call('HLEN', KEYS[1]) > 8 then
  local some = redis.call('HRANDFIELD', KEYS[1], 4, 'WITHVALUES')
  for at = 1, #some, 2 do
    local ends = tonumber(string.sub(some[at + 1], 4, 16))
    if some[at] ~= '' and string.sub(some[at], -1) ~= ':' and string.byte(some[at + 1]) == 2 and ends and ends + KEEP <= now then
      redis.call('HDEL', KEYS[1], some[at], some[at] .. ':')
    end
  end
end
return {is_replaced and 6 or 1, now}
