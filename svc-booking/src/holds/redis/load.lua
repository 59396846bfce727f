-- Makes a concert's sold seats known, unless they are. False: the database must be read again. Holds stay as they are,
-- and what else was known of them is made anew from them.
local loads_before, new_epoch, new_places, unsold, sold, lifetime = unpack(ARGV, 2, 7)
if epoch then
  return true
end
if loads_before ~= '' and (redis.call('GET', loads) or '0') ~= loads_before then
  return false
end
redis.call('DEL', fans, changes)
redis.call('SET', states, sold)
for first = 8, #ARGV, 1000 do
  redis.call('HSET', fans, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
for _, record in ipairs(redis.call('HVALS', holds)) do
  local hold = parse(record)
  set(HELD, hold.seats, '1')
  count(hold.fan, #hold.seats)
end
redis.call('HSET', meta, 'epoch', new_epoch, 'revision', 0, 'places', new_places, 'unsold', unsold)
redis.call('PEXPIRE', meta, lifetime)
return true
