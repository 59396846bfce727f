-- A hold that has not expired.
return read_live(ARGV[2]) and redis.call('HGET', holds, ARGV[2])
