-- A fan owns seats. The hold they were kept by, if there is one, ends.
local fan, id = ARGV[2], ARGV[3]
local seats = arguments(4)
local hold = read(id)
local left = hold and remove(id, hold) or {}
if not epoch then
  return disturb_loading()
end
-- Doing it again must count nothing twice.
local new = with_bit(sold, seats, 0)
if #new > 0 then
  set_bits(sold, new, 1)
  redis.call('HINCRBY', meta, 'unsold', -#new)
  redis.call('HINCRBY', fans_sold, fan, #new)
end
announce(new, 'S')
-- What the hold had beside them is nobody's now.
announce(#left > 0 and with_bit(sold, left, 0) or {}, 'A')
