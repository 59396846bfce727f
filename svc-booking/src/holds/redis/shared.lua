-- What every script begins with. The keys of a concert are in one slot of a cluster. Each call from here costs about two
-- microseconds, in which nobody else is served: there are no more of them than needed.
local holds, expiries, fans, states, changes, meta, loads = unpack(KEYS)
-- Changes that are remembered for whoever comes back, and a few more.
local CHANGES_KEPT = 4096
-- False: the concert's sold seats are not known here.
local epoch, places = unpack(redis.call('HMGET', meta, 'epoch', 'places'))

-- Milliseconds by Redis' clock, which is the same for all who ask. A test moves it by the first argument.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
end

-- Lua would write a large number as 1.8e+12; what it writes of the others takes longer.
local function integer(number)
  return string.format('%d', number)
end

-- The states of seats, in their order: 0 free, 1 sold, 2 held, 3 both, when a hold was lost and others sold its seats.
local function states_of(seats)
  local command = {'BITFIELD_RO', states}
  for _, seat in ipairs(seats) do
    command[#command + 1] = 'GET'
    command[#command + 1] = 'u2'
    command[#command + 1] = '#' .. seat
  end
  return redis.call(unpack(command))
end

-- Adds to a command that it sets a bit of each seat to '0' or '1': the first is whether it is held, the second whether it
-- is sold.
local HELD, SOLD = 0, 1
local function add(command, which, seats, bit)
  for _, seat in ipairs(seats) do
    command[#command + 1] = 'SET'
    command[#command + 1] = 'u1'
    command[#command + 1] = integer(seat * 2 + which)
    command[#command + 1] = bit
  end
end

-- Sets a bit of each seat. What they were.
local function set(which, seats, bit)
  local command = {'BITFIELD', states}
  add(command, which, seats, bit)
  return redis.call(unpack(command))
end

-- Those of some seats for which there is this value.
local function with(value, seats, values)
  local found = {}
  for index, seat in ipairs(seats) do
    if values[index] == value then
      found[#found + 1] = seat
    end
  end
  return found
end

-- Notes how many seats more or less a fan has, held and bought together.
local function count(fan, change)
  if change ~= 0 and redis.call('HINCRBY', fans, fan, integer(change)) <= 0 then
    redis.call('HDEL', fans, fan)
  end
end

-- Notes that seats are now (A)vailable, (H)eld or (S)old. Whoever calls this calls `publish` in the end.
local announced = {}
local function announce(seats, state)
  if #seats > 0 and epoch then
    announced[#announced + 1] = state .. ' ' .. table.concat(seats, ' ')
  end
end

-- Tells of all that was announced. A change is a revision.
local function publish()
  if #announced == 0 then
    return
  end
  local revision = redis.call('HINCRBY', meta, 'revision', #announced)
  redis.call('LPUSH', changes, unpack(announced))
  if revision % 64 < #announced then
    redis.call('LTRIM', changes, 0, CHANGES_KEPT - 1)
  end
end

-- What the text of a hold says.
local function parse(record)
  local words = {}
  for word in string.gmatch(record, '%S+') do
    words[#words + 1] = word
  end
  return {
    record = record,
    fan = words[1],
    create_time = tonumber(words[2]),
    expire_time = tonumber(words[3]),
    -- Until when it can't be given back, as it is being booked.
    booked_until = tonumber(words[4]),
    is_adjacent = words[5],
    seats = {unpack(words, 6)},
  }
end

-- A hold, whether it has expired or not.
local function read(id)
  local record = redis.call('HGET', holds, id)
  return record and parse(record)
end

-- A hold that has not expired.
local function read_live(id, now)
  local hold = read(id)
  return hold and hold.expire_time > now and hold or nil
end

-- Keeps a hold as it is now, and gives the text of it. Until when it was kept before, if it was.
local function write(id, hold, expire_time_before)
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
  if hold.expire_time ~= expire_time_before then
    redis.call('ZADD', expiries, words[3], id)
  end
  return record
end

-- Takes a hold out; its fan's count stays.
local function remove(id, hold)
  redis.call('HDEL', holds, id)
  redis.call('ZREM', expiries, id)
  set(HELD, hold.seats, '0')
end

-- Gives a hold back. One of its seats that was sold meanwhile stays sold, as the database decided so.
local function give_back(id, hold)
  remove(id, hold)
  count(hold.fan, -#hold.seats)
  announce(with(0, hold.seats, states_of(hold.seats)), 'A')
end

-- Gives back holds that have expired, so many at the most. How many there were.
local function release_expired(limit, now)
  local expired = redis.call('ZRANGEBYSCORE', expiries, '-inf', integer(now), 'LIMIT', 0, limit)
  for _, id in ipairs(expired) do
    local hold = read(id)
    if hold then
      give_back(id, hold)
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
