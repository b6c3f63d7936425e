-- In front of every script. ARGV: not-after, window, nonce, sid, what the script needs; and one more, 'again', if it was asked
-- before and the answer was lost.
--
-- A record is live while its key has more than KEEP left. What is within KEEP of its end, because it expired, or because
-- it was ended, stays as a tombstone: so that a duplicate of what made it is recognised, however late within the window.
local KEEP = 10000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Too late; or so early that the two clocks have lost each other. The caller then learns the time, and asks again.
local function late()
  local not_after = tonumber(ARGV[1])
  return now > not_after or not_after > now + tonumber(ARGV[2])
end

-- The versions of a record, eight bytes each, the newest first: '' if there is none, nil if it is no record of this format.
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

-- The last eight, and the one that it was created with: a duplicate of that would otherwise find only that the name is free.
local function head_of(version, older)
  local all = version .. older
  if #all > 72 then all = string.sub(all, 1, 64) .. string.sub(all, -8) end
  return '\1' .. string.char(#all / 8) .. all
end

-- The index lives as long as the last of its members.
local function enter(index, ttl)
  redis.call('ZADD', index, now + ttl, ARGV[4])
  if redis.call('PTTL', index) < ttl then redis.call('PEXPIRE', index, ttl) end
end

-- Ends a record. What frees memory goes first: from then on a script may also write when memory is used up.
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

