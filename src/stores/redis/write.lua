-- The fast path of an update: the caller knows the head, whose record ends after not-after, and the key lives long enough.
-- ARGV: …, head, value, life.
if ARGV[5] ~= '' and not is_late then
  if sid ~= '' then
    local there = redis.call('HGET', KEYS[1], sid)
    if there and string.find(there, ARGV[5], 1, true) == 1 then
      redis.call('HSET', KEYS[1], sid, ARGV[6])
      return now
    end
  elseif redis.call('GETRANGE', KEYS[1], 0, 33) == ARGV[5] then
    redis.call('SET', KEYS[1], ARGV[6], 'PX', ARGV[7])
    return now
  end
end
