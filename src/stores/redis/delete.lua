-- KEYS: record [index]   ARGV: …   -> 1 ended | 0 was not there | -1 late
local older = versions(KEYS[1])
if older and knows(older, ARGV[3]) then return {1, now} end
local was_live = older ~= '' and is_live(KEYS[1], KEYS[2])
if older and not was_live then return {0, now} end
if late() then return {-1, now} end
finish(KEYS[1], KEYS[2], ARGV[3], older or '')
return {was_live and 1 or 0, now}
