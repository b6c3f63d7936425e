-- KEYS: the hash of an owner, or the string of one visitor's record   ARGV: how many fields, or to which byte ('' for the other)
-- -> time [, the answer of HSCAN or GETRANGE]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- If the key has another type, this is an error as a value.
local found
if ARGV[1] ~= '' then
  found = redis.pcall('HSCAN', KEYS[1], 0, 'COUNT', ARGV[1])
else
  found = redis.pcall('GETRANGE', KEYS[1], 0, ARGV[2])
end
if type(found) == 'table' and found.err then
  if string.find(found.err, 'WRONGTYPE', 1, true) then return {now} end
  return found
end
return {now, found}
