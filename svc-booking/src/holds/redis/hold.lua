-- Keeps all seats for a fan, or none.
local key = KEYS[10]
local id, fan, limit, life, key_life, fingerprint, is_adjacent = unpack(ARGV, 2, 8)
local seats = arguments(9)
if not epoch then
  return {'not loaded'}
end
local known = redis.call('GET', key)
if known then
  local first_id, first_fingerprint = string.match(known, '^(%S+) (%S+)$')
  if first_fingerprint ~= fingerprint then
    return {'key reused'}
  end
  return {'replayed', first_id}
end
release_expired(20)
local of_fan = (redis.call('HGET', fans_held, fan) or 0) + (redis.call('HGET', fans_sold, fan) or 0)
local remaining = math.max(limit - of_fan, 0)
if #seats > remaining then
  return {'limit exceeded', integer(remaining)}
end
local taken = {}
local is_held, is_sold = bits(held, seats), bits(sold, seats)
for index, seat in ipairs(seats) do
  if is_held[index] == 1 or is_sold[index] == 1 or tonumber(seat) >= tonumber(places) then
    taken[#taken + 1] = seat
  end
end
if #taken > 0 then
  return {'taken', table.concat(taken, ' ')}
end
set_bits(held, seats, 1)
redis.call('HINCRBY', fans_held, fan, #seats)
redis.call('SET', key, id .. ' ' .. fingerprint, 'PX', key_life)
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
