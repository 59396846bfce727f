-- Makes a concert's sold seats known, unless they are. False: the database must be read again. Holds stay as they are.
local loads_before, new_epoch, new_places, unsold, bitmap, lifetime = unpack(ARGV, 2, 7)
if epoch then
  return true
end
if loads_before ~= '' and (redis.call('GET', loads) or '0') ~= loads_before then
  return false
end
redis.call('DEL', fans_sold, changes)
redis.call('SET', sold, bitmap)
redis.call('HSET', meta, 'epoch', new_epoch, 'revision', 0, 'places', new_places, 'unsold', unsold)
for first = 8, #ARGV, 1000 do
  redis.call('HSET', fans_sold, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
redis.call('PEXPIRE', meta, lifetime)
return true
