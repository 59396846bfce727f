-- A hold that has not expired.
local hold = read_live(ARGV[2], clock())
return hold and hold.record
