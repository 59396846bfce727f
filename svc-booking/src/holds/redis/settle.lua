-- A fan owns seats. Their hold that kept them, if there is one, ends.
local fan, id = ARGV[2], ARGV[3]
local seats = arguments(4)
local hold = read(id)
if hold then
  remove(id, hold)
end
if not epoch then
  return disturb_loading()
end
-- Doing it again must count nothing twice.
local new = with(0, seats, set(SOLD, seats, '1'))
count(fan, #new - (hold and #hold.seats or 0))
if #new > 0 then
  redis.call('HINCRBY', meta, 'unsold', -#new)
end
announce(new, 'S')
-- What the hold had beside them is nobody's now.
if hold and #hold.seats > #seats then
  announce(with(0, hold.seats, states_of(hold.seats)), 'A')
end
