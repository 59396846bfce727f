-- Makes a hold last so long from now on, within its longest life, and keeps it from being given back.
local id, patience, longest_life = unpack(ARGV, 2, 4)
local now = clock()
local hold = read_live(id, now)
if not hold then
  return false
end
local before = hold.expire_time
hold.booked_until = now + patience
hold.expire_time = math.max(before, math.min(hold.booked_until, hold.create_time + longest_life))
return write(id, hold, before)
