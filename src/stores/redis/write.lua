-- The common path of an update: the caller knows the head, and the key lives long enough. ARGV: …, head, value, life.
if ARGV[5] ~= '' and not is_late then
  if sid ~= '' then
    local there = redis.call('HGET', KEYS[1], sid)
    if there and string.sub(there, 1, 34) == ARGV[5] and tonumber(string.sub(there, 4, 16)) > now then
      redis.call('HSET', KEYS[1], sid, ARGV[6])
      return now
    end
  else
    local there = redis.call('GETRANGE', KEYS[1], 0, 33)
    if there == ARGV[5] and tonumber(string.sub(there, 4, 16)) > now then
      redis.call('SET', KEYS[1], ARGV[6], 'PX', ARGV[7])
      return now
    end
  end
end
