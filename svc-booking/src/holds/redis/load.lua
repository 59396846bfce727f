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
local counts = {}
for index = 8, #ARGV, 2 do
  counts[ARGV[index]] = tonumber(ARGV[index + 1])
end
-- There may be tens of thousands of holds: few calls for all of them.
local held = {}
for _, record in ipairs(redis.call('HVALS', holds)) do
  local hold = parse(record)
  counts[hold.fan] = (counts[hold.fan] or 0) + #hold.seats
  for _, seat in ipairs(hold.seats) do
    held[#held + 1] = seat
  end
  if #held >= 1000 then
    set(HELD, held, '1')
    held = {}
  end
end
if #held > 0 then
  set(HELD, held, '1')
end
local fields = {}
for of_fan, seats in pairs(counts) do
  fields[#fields + 1] = of_fan
  fields[#fields + 1] = integer(seats)
  if #fields >= 2000 then
    redis.call('HSET', fans, unpack(fields))
    fields = {}
  end
end
if #fields > 0 then
  redis.call('HSET', fans, unpack(fields))
end
redis.call('HSET', meta, 'epoch', new_epoch, 'revision', 0, 'places', new_places, 'unsold', unsold)
redis.call('PEXPIRE', meta, lifetime)
return true
