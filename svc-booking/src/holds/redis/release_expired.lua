-- Gives back the seats of holds that have expired, of so many at the most. How many there were.
local released = release_expired(ARGV[2], clock())
publish()
return released
