-- What every script begins with. The keys of a concert are in one slot of a cluster.
local meta, held, sold, holds, expiries, fans_held, fans_sold, changes, loads = unpack(KEYS)
-- Milliseconds by Redis' clock, which is the same for all who ask. A test moves it by the first argument.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
-- Changes that are remembered for whoever comes back.
local CHANGES_KEPT = 4096
-- False: the concert's sold seats are not known here.
local epoch, places = unpack(redis.call('HMGET', meta, 'epoch', 'places'))

-- Lua would write a large number as 1.8e+12.
local function integer(number)
  return string.format('%.0f', number)
end

-- The arguments from the given one on.
local function arguments(first)
  return {unpack(ARGV, first)}
end

-- The bits of seats, in their order.
local function bits(bitmap, seats)
  local command = {'BITFIELD_RO', bitmap}
  for _, seat in ipairs(seats) do
    command[#command + 1] = 'GET'
    command[#command + 1] = 'u1'
    command[#command + 1] = seat
  end
  return redis.call(unpack(command))
end

local function set_bits(bitmap, seats, bit)
  local command = {'BITFIELD', bitmap}
  for _, seat in ipairs(seats) do
    command[#command + 1] = 'SET'
    command[#command + 1] = 'u1'
    command[#command + 1] = seat
    command[#command + 1] = bit
  end
  redis.call(unpack(command))
end

-- Those of some seats that have this bit.
local function with_bit(bitmap, seats, bit)
  local found = {}
  for index, is_set in ipairs(bits(bitmap, seats)) do
    if is_set == bit then
      found[#found + 1] = seats[index]
    end
  end
  return found
end

-- Notes that seats are now (A)vailable, (H)eld or (S)old.
local function announce(seats, state)
  if #seats == 0 or not epoch then
    return
  end
  redis.call('HINCRBY', meta, 'revision', 1)
  redis.call('LPUSH', changes, state .. ' ' .. table.concat(seats, ' '))
  redis.call('LTRIM', changes, 0, CHANGES_KEPT - 1)
end

-- A hold, whether it has expired or not.
local function read(id)
  local record = redis.call('HGET', holds, id)
  if not record then
    return nil
  end
  local words = {}
  for word in string.gmatch(record, '%S+') do
    words[#words + 1] = word
  end
  return {
    fan = words[1],
    create_time = tonumber(words[2]),
    expire_time = tonumber(words[3]),
    -- Until when it can't be given back, as it is being booked.
    booked_until = tonumber(words[4]),
    is_adjacent = words[5],
    seats = {unpack(words, 6)},
  }
end

-- Keeps a hold as it is now, and gives the text of it.
local function write(id, hold)
  local words = {
    hold.fan,
    integer(hold.create_time),
    integer(hold.expire_time),
    integer(hold.booked_until),
    hold.is_adjacent,
    table.concat(hold.seats, ' '),
  }
  local record = table.concat(words, ' ')
  redis.call('HSET', holds, id, record)
  redis.call('ZADD', expiries, integer(hold.expire_time), id)
  return record
end

-- A hold that has not expired.
local function read_live(id)
  local hold = read(id)
  return hold and hold.expire_time > now and hold or nil
end

-- Takes a hold out. Those of its seats that are nobody's then: one that was sold meanwhile stays sold, as the database
-- decided so.
local function remove(id, hold)
  redis.call('HDEL', holds, id)
  redis.call('ZREM', expiries, id)
  if redis.call('HINCRBY', fans_held, hold.fan, -#hold.seats) <= 0 then
    redis.call('HDEL', fans_held, hold.fan)
  end
  set_bits(held, hold.seats, 0)
  return with_bit(sold, hold.seats, 0)
end

-- Gives back the seats of holds that have expired, of so many at the most. How many there were.
local function release_expired(limit)
  local expired = redis.call('ZRANGEBYSCORE', expiries, '-inf', integer(now), 'LIMIT', 0, limit)
  for _, id in ipairs(expired) do
    local hold = read(id)
    if hold then
      announce(remove(id, hold), 'A')
    else
      redis.call('ZREM', expiries, id)
    end
  end
  return #expired
end

-- Whoever is loading the concert has read the database before this: it must read it again.
local function disturb_loading()
  redis.call('INCR', loads)
  redis.call('PEXPIRE', loads, 3600000)
end
