-- A fan gave seats back.
local fan = ARGV[2]
local seats = arguments(3)
if not epoch then
  return disturb_loading()
end
local freed = with(1, seats, set(SOLD, seats, '0'))
if #freed == 0 then
  return
end
redis.call('HINCRBY', meta, 'unsold', #freed)
count(fan, -#freed)
local states_now = states_of(freed)
announce(with(0, freed, states_now), 'A')
announce(with(2, freed, states_now), 'H')
