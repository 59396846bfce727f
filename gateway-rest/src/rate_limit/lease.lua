-- Takes calls from a caller's quota, as many as are left of those wanted. The quota is the time at which it will be whole
-- again, in microseconds (the generic cell rate algorithm).
local wanted, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local whole_time = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local left = math.floor((window - (whole_time - now)) / cost)
local granted = math.max(math.min(wanted, left), 0)
if granted == 0 then
  -- When there will be one.
  return {0, 0, whole_time - now + cost - window}
end
whole_time = whole_time + granted * cost
redis.call('SET', KEYS[1], string.format('%.0f', whole_time), 'PX', math.ceil((whole_time - now) / 1000))
return {granted, left - granted, whole_time - now}
