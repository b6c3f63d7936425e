-- KEYS: …, the key of the visitor's record that this one leaves, if any
-- ARGV: …, value, payload, life, named, taken, limit, left [, age] [, again]
-- -> 1 created [, what happened to the record that this one leaves, its value, the sids that ended] | 0 the name is taken
--  | 4 cleared since | 5 there was a clear just now, its name | 6 like 1, in place of a key of another type | 7 full | -1 late
--  | -3 unknown
-- named: the owner's last clear. taken: when the mark that names it was taken, in milliseconds, '' without a mark. limit: how
-- many records the owner may have, '' for any number; -1 - limit to refuse more. left: the version of the record that this one
-- leaves. age: the age of the request, in microseconds.
local taken, limit, age = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[12])
local again = ARGV[12] == 'again' or ARGV[13] == 'again'
local REMEMBERED = 900000000

-- Ends the record that this one leaves. 0: not tried | 1: ended | 2: not there | 3: it has another version, its value
local function leave()
  if not KEYS[2] then return 0 end
  -- If the key has another type, this is an error as a value.
  local head = redis.pcall('GETRANGE', KEYS[2], 0, 97)
  if type(head) ~= 'string' or head == '' then return 2 end
  local record = parse(head)
  if record.is_foreign then return 0 end
  if not record.is_live then return 2 end
  if record.version ~= ARGV[11] then
    if redis.call('STRLEN', KEYS[2]) > 32768 then return 0 end
    return 3, redis.call('GET', KEYS[2])
  end
  -- As in `finish`.
  redis.call('PEXPIRE', KEYS[2], KEEP)
  redis.call('SET', KEYS[2], trace(ARGV[3], older(record)), 'PX', KEEP)
  return 1
end

local function done(code, ended)
  local left, value = leave()
  if left == 0 and #ended == 0 then return {code, now} end
  local answer = {code, now, left, value or ''}
  for _, least in ipairs(ended) do answer[#answer + 1] = least end
  return answer
end

local is_replaced = redis.call('TYPE', KEYS[1]).ok
is_replaced = is_replaced ~= 'none' and is_replaced ~= (sid == '' and 'string' or 'hash')
local record = is_replaced and {} or read(sid)
local known = knows(record, ARGV[3])
-- A duplicate gets the answer that the record was created, even if it has ended since. A retry must not take the record for live.
if known and (record.is_live or not again) then
  if is_late and KEYS[2] then return {-1, now} end
  return done(1, {})
end
if is_late then return {-1, now} end
if age and age > REMEMBERED then return {4, now} end
-- A mark can only be from the future if another clock has taken over.
if taken and (now - taken > REMEMBERED / 1000 or taken - now > 60000) then return {4, now} end
local clears = sid ~= '' and not is_replaced and redis.call('HGET', KEYS[1], '')
if clears then
  local micros = time[1] * 1000000 + time[2]
  local at, name = tonumber(string.sub(clears, 1, 16)) or micros, string.sub(clears, 17, 24)
  if age then
    if at > micros then
      -- The clock was set back, so the time of the clear is unknown. This request is late, and later ones are not.
      at = micros
      redis.call('HSET', KEYS[1], '', string.format('%016.0f', at) .. string.sub(clears, 17))
    end
    if micros - at < age then return {4, now} end
  end
  -- The name counts, whatever the clocks say. A mark without a name was taken before any recent clear.
  if taken and ARGV[8] ~= name and (ARGV[8] ~= '' or micros - at < REMEMBERED) then return {4, now} end
  -- A duplicate of a create from before the clear does not name it. This does not depend on clocks.
  if (at > micros or micros - at < 5000000) and ARGV[8] ~= name then
    if again then return {-3, now} end
    return {5, now, name}
  end
elseif taken and ARGV[8] ~= '' then
  -- The clear was forgotten, so a later one may have been forgotten as well.
  return {4, now}
end
if known then return {-3, now} end
if record.is_live or record.is_foreign then return {0, now} end

-- There are at least as many fields as records. They are read only if there may be too many records.
local fields = sid ~= '' and not is_replaced and redis.call('HLEN', KEYS[1]) or 0
local most = limit and (limit < 0 and -1 - limit or limit)
local is_full = most and sid ~= '' and fields - (clears and 1 or 0) >= most
local others, dead, above = {}, {}, 0
if is_full and fields > 0 then
  local sids = {}
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if field ~= '' and field ~= sid and string.sub(field, -1) ~= ':' then sids[#sids + 1] = field end
  end
  for from = 1, #sids, 1000 do
    for at, value in ipairs(redis.call('HMGET', KEYS[1], unpack(sids, from, math.min(from + 999, #sids)))) do
      local format, place = string.byte(value, 1, 2)
      local ends = format == 2 and #value >= 34 and tonumber(string.sub(value, 4, 16))
      if ends and place < 2 and ends > now then
        -- The order in which they end: by last use, then by expiry, then by name.
        others[#others + 1] = string.sub(value, 25, 34) .. string.sub(value, 4, 16) .. sids[from + at - 1]
      elseif ends and ends + KEEP <= now then
        dead[#dead + 1] = sids[from + at - 1]
      end
    end
  end
end
if is_full then
  above = #others + 1 - most
  if above > 0 and limit < 0 then return {7, now} end
end

if is_replaced then redis.call('UNLINK', KEYS[1]) end
-- This write comes first. If memory is used up, it is refused before any record has ended.
put(sid, with_older(ARGV[5], older(record)), ARGV[6], ARGV[7], record)
local ended = {}
if above > 0 then table.sort(others) end
for at = 1, math.min(above, #others) do
  local least = string.sub(others[at], 24)
  local value = redis.call('HGET', KEYS[1], least)
  redis.call('HSET', KEYS[1], least, trace(string.sub(value, 17, 24), string.sub(value, 35, 34 + 8 * string.byte(value, 3))))
  redis.call('HDEL', KEYS[1], least .. ':')
  ended[at] = least
end
-- Remove the ended records.
if not is_full and fields >= 8 then
  local some = redis.call('HRANDFIELD', KEYS[1], 4, 'WITHVALUES')
  for at = 1, #some, 2 do
    local ends = tonumber(string.sub(some[at + 1], 4, 16))
    if some[at] ~= '' and string.sub(some[at], -1) ~= ':' and string.byte(some[at + 1]) == 2 and ends and ends + KEEP <= now then
      dead[#dead + 1] = some[at]
    end
  end
end
for _, least in ipairs(dead) do redis.call('HDEL', KEYS[1], least, least .. ':') end
return done(is_replaced and 6 or 1, ended)
