-- Every script begins with this. KEYS: the hash of an owner, or the string of one visitor's record. ARGV: not-after, window,
-- version or name, sid ('' for a visitor's record), then the arguments that the script lists. The last one is 'again' if the
-- script was sent before, by this call or by an earlier call of the caller, and its answer was lost.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Too late, or so early that the clocks do not match. The limit is never ahead of this clock, in whole milliseconds, so whoever
-- gave the write up did so when this clock showed at least the limit. The caller then learns the time and sends the script again.
local is_late = now >= tonumber(ARGV[1]) or tonumber(ARGV[1]) > now + ARGV[2]
local sid = ARGV[4]
