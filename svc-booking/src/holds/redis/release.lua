-- Gives a hold's seats back, unless it is being booked.
local id = ARGV[2]
local hold = read_live(id)
if not hold then
  return {'gone'}
end
if now < hold.booked_until then
  return {'being booked'}
end
local record = redis.call('HGET', holds, id)
announce(remove(id, hold), 'A')
return {'given back', record}
