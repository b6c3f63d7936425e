-- The fast path of a create: a visitor's record, and nothing has its name. The rest of the script would find nothing to look at.
-- ARGV: …, value, payload, life, named, taken, limit, left [, age] [, again].
if sid == '' and not KEYS[2] and ARGV[9] == '' and (not ARGV[12] or ARGV[12] == 'again') and not is_late then
  if redis.call('SET', KEYS[1], ARGV[5], 'PX', ARGV[7], 'NX') then return now end
end
