-- ARGV: …, extra   -> 1 ended | 0 was not there | -1 late
local record = read(sid)
if knows(record, ARGV[3]) then return {1, now} end
if not record.is_live and not record.is_foreign then return {0, now} end
if is_late then return {-1, now} end
finish(sid, ARGV[3], record, tonumber(ARGV[5]))
return {(record.is_live or record.is_foreign) and 1 or 0, now}
