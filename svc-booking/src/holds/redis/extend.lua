-- Makes a hold last so long from its making on, if it does not already.
local id, life = ARGV[2], ARGV[3]
local hold = read_live(id, clock())
if not hold then
  return false
end
local before = hold.expire_time
hold.expire_time = math.max(before, hold.create_time + life)
return write(id, hold, before)
