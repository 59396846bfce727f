-- A hold became no booking: it can be given back again.
local id = ARGV[2]
local hold = read(id)
if hold then
  hold.booked_until = 0
  write(id, hold, hold.expire_time)
end
