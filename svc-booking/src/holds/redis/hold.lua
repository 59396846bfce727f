-- Keeps all seats for a fan, or none.
local key = KEYS[8]
local id, fan, limit, life, key_life, fingerprint, is_adjacent = unpack(ARGV, 2, 8)
local seats = arguments(9)
if not epoch then
  return {'not loaded'}
end
local known = redis.call('SET', key, id .. ' ' .. fingerprint, 'NX', 'GET', 'PX', key_life)
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

local now = clock()
local refused = refusal()
-- What has expired is in nobody's way.
if refused and release_expired(20, now) > 0 then
  refused = refusal()
end
if refused then
  redis.call('DEL', key)
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
