-- KEYS: the keys of several writes   ARGV: not-after, window, and of each write: sid, head, value, life
-- -> time | time, the numbers of the writes that have to be sent alone
-- The fast paths of an update, and of a visitor's create, which has no head, for writes that are ready at the same time.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local is_late = now >= tonumber(ARGV[1]) or tonumber(ARGV[1]) > now + ARGV[2]
local left = {now}
for n, key in ipairs(KEYS) do
  local at, is_done = 4 * n - 1, false
  local sid, head = ARGV[at], ARGV[at + 1]
  if sid ~= '' then
    local there = not is_late and redis.call('HGET', key, sid)
    if there and string.find(there, head, 1, true) == 1 then
      redis.call('HSET', key, sid, ARGV[at + 2])
      is_done = true
    end
  elseif head == '' then
    is_done = not is_late and redis.call('SET', key, ARGV[at + 2], 'PX', ARGV[at + 3], 'NX')
  elseif not is_late and redis.call('GETRANGE', key, 0, 33) == head then
    redis.call('SET', key, ARGV[at + 2], 'PX', ARGV[at + 3])
    is_done = true
  end
  if not is_done then left[#left + 1] = n end
end
if #left > 1 then return left end
return now
