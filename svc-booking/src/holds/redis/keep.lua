-- Keeps everything of a concert for so long from now on. How many holds there are.
for index = 1, 9 do
  redis.call('PEXPIRE', KEYS[index], ARGV[2])
end
return redis.call('ZCARD', expiries)
