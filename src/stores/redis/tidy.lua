-- KEYS: index, records   ARGV: …, their sids   -> 1. Removes dead members from the index, and shortens the life of records that are not in it.
for at = 2, #KEYS do
  local left = redis.call('PTTL', KEYS[at])
  local member = redis.call('ZSCORE', KEYS[1], ARGV[at + 3])
  if member and left <= KEEP then redis.call('ZREM', KEYS[1], ARGV[at + 3]) end
  if not member and left > KEEP then redis.call('PEXPIRE', KEYS[at], KEEP) end
end
return {1, now}
