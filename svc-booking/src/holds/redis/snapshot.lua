-- All seats of a concert. Expired holds are given back first: nobody may have swept them lately.
if not epoch then
  return false
end
release_expired(100)
local revision = redis.call('HGET', meta, 'revision')
return {epoch, revision, places, redis.call('GET', held) or '', redis.call('GET', sold) or ''}
