-- Keeps everything of a concert for so long from now on.
for index = 1, 9 do
  redis.call('PEXPIRE', KEYS[index], ARGV[2])
end
