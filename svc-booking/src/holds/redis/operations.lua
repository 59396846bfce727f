-- What is done to one hold, or for one fan: some of these at once, for the costs of a script are mostly those of being
-- called. Arguments: how far a test moves the clock; then for each operation its name, which of the keys is
-- its request key (0: none), how many arguments it has, and those. Answers: one each, in this order; of one that broke, "failed"
-- and why.
local now = clock()
-- Expired holds that are given back at the most for those who are refused: it keeps everybody waiting.
local releases_left = 20
-- Seats that are sold in this script, less those that are given back.
local newly_sold = 0
local operations = {}

-- Keeps all seats for a fan, or none.
function operations.hold(arguments, request_key)
  local id, fan, limit, life, key_life, fingerprint, is_adjacent = unpack(arguments, 1, 7)
  local seats = {unpack(arguments, 8)}
  if not epoch then
    return {'not loaded'}
  end
  local known = redis.call('SET', request_key, id .. ' ' .. fingerprint, 'NX', 'GET', 'PX', key_life)
  if known then
    local first_id, first_fingerprint = string.match(known, '^(%S+) (%S+)$')
    if first_fingerprint ~= fingerprint then
      return {'key reused'}
    end
    return {'replayed', first_id}
  end

  -- Why the fan can't have the seats; nothing if they can.
  local function refusal()
    local remaining = math.max(limit - (redis.call('HGET', fans, fan) or 0), 0)
    if #seats > remaining then
      return {'limit exceeded', integer(remaining)}
    end
    local taken = {}
    for index, state in ipairs(states_of(seats)) do
      if state ~= 0 or tonumber(seats[index]) >= tonumber(places) then
        taken[#taken + 1] = seats[index]
      end
    end
    return #taken > 0 and {'taken', table.concat(taken, ' ')} or nil
  end

  local refused = refusal()
  -- What has expired is in nobody's way.
  if refused and releases_left > 0 then
    local released = release_expired(releases_left, now)
    releases_left = releases_left - released
    if released > 0 then
      refused = refusal()
    end
  end
  if refused then
    redis.call('DEL', request_key)
    return refused
  end
  set(HELD, seats, '1')
  count(fan, #seats)
  announce(seats, 'H')
  local hold = {
    fan = fan,
    create_time = now,
    expire_time = now + life,
    booked_until = 0,
    is_adjacent = is_adjacent,
    seats = seats,
  }
  return {'held', write(id, hold)}
end

-- A hold that has not expired.
function operations.find(arguments)
  local hold = read_live(arguments[1], now)
  return hold and hold.record
end

-- Makes a hold last so long from its making on, if it does not already.
function operations.extend(arguments)
  local id, life = unpack(arguments)
  local hold = read_live(id, now)
  if not hold then
    return
  end
  local before = hold.expire_time
  hold.expire_time = math.max(before, hold.create_time + life)
  return write(id, hold, before)
end

-- Makes a hold last so long from now on, within its longest life, and keeps it from being given back.
function operations.begin_booking(arguments)
  local id, patience, longest_life = unpack(arguments)
  local hold = read_live(id, now)
  if not hold then
    return
  end
  local before = hold.expire_time
  hold.booked_until = now + patience
  hold.expire_time = math.max(before, math.min(hold.booked_until, hold.create_time + longest_life))
  return write(id, hold, before)
end

-- A hold became no booking: it can be given back again.
function operations.end_booking(arguments)
  local id = arguments[1]
  local hold = read(id)
  if hold then
    hold.booked_until = 0
    write(id, hold, hold.expire_time)
  end
end

-- Gives a hold's seats back, unless it is being booked. Nothing: it is gone.
function operations.release(arguments)
  local id = arguments[1]
  local hold = read_live(id, now)
  if not hold then
    return
  end
  if now < hold.booked_until then
    return {'being booked'}
  end
  give_back(id, hold)
  return {'given back', hold.record}
end

-- A fan owns seats. Their hold that kept them, if there is one, ends.
function operations.settle(arguments)
  local fan, id = unpack(arguments, 1, 2)
  local seats = {unpack(arguments, 3)}
  local hold = read(id)
  local held = hold and hold.seats or {}
  local command = {'BITFIELD', states}
  if hold then
    redis.call('HDEL', holds, id)
    redis.call('ZREM', expiries, id)
    add(command, HELD, held, '0')
  end
  if not epoch then
    if hold then
      redis.call(unpack(command))
    end
    return disturb_loading()
  end
  add(command, SOLD, seats, '1')
  local before = redis.call(unpack(command))
  -- Doing it again must count nothing twice.
  local new = with(0, seats, {unpack(before, #held + 1)})
  count(fan, #new - #held)
  newly_sold = newly_sold + #new
  announce(new, 'S')
  -- What the hold had beside them is nobody's now.
  if #held > #seats then
    announce(with(0, held, states_of(held)), 'A')
  end
end

-- A fan gave seats back.
function operations.free(arguments)
  local fan = arguments[1]
  local seats = {unpack(arguments, 2)}
  if not epoch then
    return disturb_loading()
  end
  local freed = with(1, seats, set(SOLD, seats, '0'))
  if #freed == 0 then
    return
  end
  newly_sold = newly_sold - #freed
  count(fan, -#freed)
  local states_now = states_of(freed)
  announce(with(0, freed, states_now), 'A')
  announce(with(2, freed, states_now), 'H')
end

local answers = {}
local position = 2
while position <= #ARGV do
  local operation, key, length = unpack(ARGV, position, position + 2)
  local last = position + 2 + length
  local arguments = {unpack(ARGV, position + 3, last)}
  -- What breaks one must not break the others, nor keep what they did from being told.
  local is_done, answer = pcall(operations[operation], arguments, KEYS[tonumber(key)])
  if not is_done then
    answer = {'failed', type(answer) == 'table' and answer.err or tostring(answer)}
  end
  answers[#answers + 1] = answer or false
  position = last + 1
end
if newly_sold ~= 0 then
  redis.call('HINCRBY', meta, 'unsold', -newly_sold)
end
publish()
return answers
