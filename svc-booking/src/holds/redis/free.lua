-- A fan gave seats back.
local fan = ARGV[2]
local seats = arguments(3)
if not epoch then
  return disturb_loading()
end
local freed = with_bit(sold, seats, 1)
if #freed == 0 then
  return
end
set_bits(sold, freed, 0)
redis.call('HINCRBY', meta, 'unsold', #freed)
if redis.call('HINCRBY', fans_sold, fan, -#freed) <= 0 then
  redis.call('HDEL', fans_sold, fan)
end
announce(with_bit(held, freed, 0), 'A')
announce(with_bit(held, freed, 1), 'H')
