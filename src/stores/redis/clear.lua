-- ARGV: …, by version, keep, extra   -> 1 done, count | 6 the same, in place of a key of another type | 0 gone
--  | 2 conflict, value [, payload] | 3 conflict, to be read | -1 late | -2 unreadable
-- The sid is that of the record that the clear is made by, '' without one. That record must have this version, and stays if
-- keep is '1'. The name of the clear takes the place of the version. The field '' holds the time of the last clear (sixteen
-- digits, in microseconds) and the last eight clears: the name, and the count in eight digits.
local is_replaced = redis.call('TYPE', KEYS[1]).ok
is_replaced = is_replaced ~= 'none' and is_replaced ~= 'hash'
local last = not is_replaced and redis.call('HGET', KEYS[1], '') or ''
for at = 17, #last, 16 do
  if string.sub(last, at, at + 7) == ARGV[3] then return {1, now, tonumber(string.sub(last, at + 8, at + 15)) or 0} end
end
local by, extra, keeps = {}, tonumber(ARGV[7]), ARGV[6] == '1'
if sid ~= '' then
  if not is_replaced then by = read(sid) end
  if by.is_foreign then return {-2, now} end
  if not by.is_live then return {0, now} end
  if by.version ~= ARGV[5] then return conflict(sid, by) end
end
if is_late then return {-1, now} end

-- The count is exact up to a thousand fields. Above that, it includes expired records.
local ended = is_replaced and 0 or redis.call('HLEN', KEYS[1])
local fields = not is_replaced and ended <= 1000 and redis.call('HKEYS', KEYS[1])
local gone = {}
if fields then
  ended = 0
  for _, field in ipairs(fields) do
    local is_kept = field == '' or keeps and (field == sid or field == sid .. ':')
    if not is_kept then gone[#gone + 1] = field end
    if not is_kept and string.sub(field, -1) ~= ':' then
      local record = read(field)
      if record.is_live or record.is_foreign then ended = ended + 1 end
    end
  end
elseif keeps then
  ended = ended - 1
end

local all = string.sub(ARGV[3] .. string.format('%08d', ended) .. string.sub(last, 17), 1, 128)
all = string.format('%016.0f', time[1] * 1000000 + time[2]) .. all
-- Longer than a mark that names this clear can matter (thirty minutes), because extra is more than a thousand seconds, and longer
-- than any visitor's record lives.
local life = 960000 + extra
if keeps then life = math.max(life, by.ends - now + extra) end
if fields then
  -- As in `finish`. The key exists all the time, because in a slot that is being migrated a script must not use a missing key.
  redis.call('PEXPIRE', KEYS[1], life)
  redis.call('HSET', KEYS[1], '', all)
  if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
else
  -- The memory is freed in the background.
  local payload = keeps and by.place == 1 and redis.call('HGET', KEYS[1], sid .. ':')
  redis.call('UNLINK', KEYS[1])
  redis.call('HSET', KEYS[1], '', all)
  if keeps then redis.call('HSET', KEYS[1], sid, by.value) end
  if payload then redis.call('HSET', KEYS[1], sid .. ':', payload) end
end
redis.call('PEXPIRE', KEYS[1], life)
return {is_replaced and 6 or 1, now, ended}
