-- Keeps everything of a concert for so long from now on.
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[2])
end
