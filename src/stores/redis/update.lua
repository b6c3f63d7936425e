-- ARGV: …, head, value, life, payload, expected, ttl, extra [, again]
-- -> 1 done | 0 gone | 2 conflict, value [, payload] | 3 conflict, to be read | -1 late | -2 unreadable | -3 unknown
local record = read(sid)
if record.is_foreign then return {-2, now} end
if knows(record, ARGV[3]) then return {1, now} end
if not record.is_live then return {0, now} end
if record.version ~= ARGV[9] then
  -- On a retry it is a conflict only if every write since the expected version is known: if that version is among the last
  -- eight. The ninth is the first version, and the writes after it may be forgotten.
  if ARGV[12] then
    local last = {versions = string.sub(record.versions, 1, 64)}
    if not knows(last, ARGV[9]) then return {-3, now} end
  end
  return conflict(sid, record)
end
if is_late then return {-1, now} end
if tonumber(ARGV[10]) <= 0 then
  finish(sid, ARGV[3], record, tonumber(ARGV[11]))
else
  put(sid, with_older(ARGV[6], older(record)), ARGV[8], ARGV[7], record)
end
return {1, now}
