-- KEYS: any key of a node of a Cluster   ARGV: cursor, pattern, count   -> time, the node, next cursor, keys
-- The key only selects the node. It need not exist, and is not read.
local time = redis.call('TIME')
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
return {time[1] * 1000 + math.floor(time[2] / 1000), redis.call('CLUSTER', 'MYID'), page[1], page[2]}
