-- Gives a hold's seats back, unless it is being booked. False: it is gone.
local id = ARGV[2]
local now = clock()
local hold = read_live(id, now)
if not hold then
  return false
end
if now < hold.booked_until then
  return {'being booked'}
end
give_back(id, hold)
return {'given back', hold.record}
