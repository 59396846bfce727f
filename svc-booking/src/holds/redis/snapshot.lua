-- All seats of a concert.
if not epoch then
  return false
end
local revision = redis.call('HGET', meta, 'revision')
return {epoch, revision, places, redis.call('GET', held) or '', redis.call('GET', sold) or ''}
