-- A value: the head of 34 bytes, up to eight older versions of eight bytes, the payload. The head: the format; where the payload
-- is (0 here, 1 in the field '<sid>:', 2 nowhere: it has ended); how many older versions follow; when it ends, in
-- milliseconds, 13 digits; the version, 8 bytes; when it was last used, in seconds, 10 digits.

-- How long an ended record is remembered, so that a duplicate of the request that created it is recognised.
local KEEP = 10000

-- Parses a record. It is empty if it is no longer remembered. is_foreign: it has another format.
local function parse(value)
  local place, count, ends = string.byte(value, 2), string.byte(value, 3), tonumber(string.sub(value, 4, 16))
  if #value < 34 or string.byte(value) ~= 2 or place > 2 or count > 8 or #value < 34 + 8 * count or not ends then
    return {is_foreign = true}
  end
  local is_live = place < 2 and ends > now
  if not is_live and ends + KEEP <= now then return {} end
  return {
    value = value, place = place, ends = ends, is_live = is_live, version = string.sub(value, 17, 24),
    versions = string.sub(value, 17, 24) .. string.sub(value, 35, 34 + 8 * count),
  }
end

-- Reads a record by its name. It is empty if there is none.
local function read(sid)
  local value
  if sid == '' then
    -- Without the payload.
    value = redis.call('GETRANGE', KEYS[1], 0, 97)
    if value == '' and redis.call('EXISTS', KEYS[1]) == 0 then return {} end
  else
    value = redis.call('HGET', KEYS[1], sid)
    if not value then return {} end
  end
  return parse(value)
end

local function knows(record, version)
  for at = 1, record.versions and #record.versions or 0, 8 do
    if string.sub(record.versions, at, at + 7) == version then return true end
  end
  return false
end

-- The older versions for the next value: the last seven, and the first. Without the first one, a duplicate of the create would
-- find the name free.
local function older(record)
  local all = record.versions or ''
  if #all > 64 then all = string.sub(all, 1, 56) .. string.sub(all, -8) end
  return all
end

-- The same value with these older versions.
local function with_older(value, versions)
  local payload = string.sub(value, 35 + 8 * string.byte(value, 3))
  return string.sub(value, 1, 2) .. string.char(#versions / 8) .. string.sub(value, 4, 34) .. versions .. payload
end

local function expire_at_least(life)
  if redis.call('PTTL', KEYS[1]) < life then redis.call('PEXPIRE', KEYS[1], life) end
end

local function put(sid, value, payload, life, record)
  if sid == '' then
    redis.call('SET', KEYS[1], value, 'PX', life)
    return
  end
  redis.call('HSET', KEYS[1], sid, value)
  if payload ~= '' then
    redis.call('HSET', KEYS[1], sid .. ':', payload)
  elseif record.place == 1 then
    redis.call('HDEL', KEYS[1], sid .. ':')
  end
  expire_at_least(tonumber(life))
end

-- How long a hash with few fields lives, by its remaining records. extra: how much longer than its longest session it lives.
local function settle(extra)
  local fields, last = redis.call('HKEYS', KEYS[1]), now + KEEP
  for _, field in ipairs(fields) do
    if field == '' then
      local at = tonumber(string.sub(redis.call('HGET', KEYS[1], ''), 1, 16)) or 0
      last = math.max(last, math.floor(at / 1000) + 960000 + extra)
    elseif string.sub(field, -1) ~= ':' then
      local value = redis.call('HGET', KEYS[1], field)
      local ends = tonumber(string.sub(value, 4, 16))
      -- It is not known how long a record of another format lives.
      if string.byte(value) ~= 2 or not ends then return end
      last = math.max(last, ends + (string.byte(value, 2) == 2 and KEEP or extra))
    end
  end
  redis.call('PEXPIRE', KEYS[1], last - now)
end

-- The remains of an ended record: its versions.
local function trace(version, versions)
  return '\2\2' .. string.char(#versions / 8) .. string.format('%013.0f', now) .. version ..
    string.format('%010.0f', math.floor(now / 1000)) .. versions
end

-- Ends a record. It stays without its payload for a while. PEXPIRE comes first: after a command that needs no memory, a script
-- may write even if memory is used up.
local function finish(sid, version, record, extra)
  local left, value = redis.call('PTTL', KEYS[1]), trace(version, older(record))
  redis.call('PEXPIRE', KEYS[1], math.max(left, KEEP))
  if sid == '' then
    redis.call('SET', KEYS[1], value, 'PX', KEEP)
    return
  end
  redis.call('HSET', KEYS[1], sid, value)
  redis.call('HDEL', KEYS[1], sid .. ':')
  if redis.call('HLEN', KEYS[1]) <= 16 or left < 0 then settle(extra) end
end

-- The answer to a conflict. Lua copies and hashes all strings, so a large record costs half as much when it is read without Lua.
local function conflict(sid, record)
  if sid == '' then
    if redis.call('STRLEN', KEYS[1]) > 32768 then return {3, now} end
    return {2, now, redis.call('GET', KEYS[1])}
  end
  if record.place == 1 then
    if redis.call('HSTRLEN', KEYS[1], sid .. ':') > 32768 then return {3, now} end
    return {2, now, record.value, redis.call('HGET', KEYS[1], sid .. ':')}
  end
  return {2, now, record.value}
end
