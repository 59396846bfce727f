-- Gives back the seats of holds that have expired, of so many at the most. How many there were.
return release_expired(ARGV[2], clock())
