-- Gives back the seats of holds that have expired. How many there were.
return release_expired(500)
