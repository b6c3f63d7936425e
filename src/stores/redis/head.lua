-- The head of every script. ARGV: not-after, window, nonce, sid, then the arguments of the script; and 'again' at the end if it
-- was sent before, by this call or by an earlier one of the caller, and its answer was lost.
--
-- A record is live while its key has more than KEEP left. With less than that it has expired or was ended, and stays as a
-- tombstone, so that a duplicate of the request that created it is recognized within the window.
local KEEP = 10000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- True if the request is too late, or so early that the clocks do not match. The caller then learns the time and asks again.
local function late()
  local not_after = tonumber(ARGV[1])
  return now > not_after or not_after > now + tonumber(ARGV[2])
end

-- The versions of a record, eight bytes each, newest first: '' if there is no record, nil if it has another format.
local function versions(record)
  local head = redis.call('GETRANGE', record, 0, 73)
  if head == '' then return redis.call('EXISTS', record) == 0 and '' or nil end
  local count = string.byte(head, 2) or 0
  if string.byte(head) ~= 1 or count < 1 or count > 9 or #head < 2 + 8 * count then return nil end
  return string.sub(head, 3, 2 + 8 * count)
end

local function knows(versions, version)
  for at = 1, #versions, 8 do
    if string.sub(versions, at, at + 7) == version then return true end
  end
  return false
end

local function is_live(record, index)
  return redis.call('PTTL', record) > KEEP and (not index or redis.call('ZSCORE', index, ARGV[4])) and true
end

-- Keeps the last eight versions and the first one. Without that, a duplicate of the create would find the name free.
local function head_of(version, older)
  local all = version .. older
  if #all > 72 then all = string.sub(all, 1, 64) .. string.sub(all, -8) end
  return '\1' .. string.char(#all / 8) .. all
end

-- Adds a member. The index lives as long as its last member.
local function enter(index, ttl)
  redis.call('ZADD', index, now + ttl, ARGV[4])
  if redis.call('PTTL', index) < ttl then redis.call('PEXPIRE', index, ttl) end
end

-- Ends a record. A command that frees memory comes first: after it, a script may write even when memory is used up.
local function finish(record, index, version, older)
  if index then redis.call('ZREM', index, ARGV[4]) end
  redis.call('PEXPIRE', record, KEEP)
  redis.call('SET', record, head_of(version, older), 'PX', KEEP)
end

local function put(record, index, version, older, payload, ttl)
  if ttl <= 0 then return finish(record, index, version, older) end
  redis.call('SET', record, head_of(version, older) .. payload, 'PX', ttl + KEEP)
  if index then enter(index, ttl) end
end

