-- All seats of a concert. Expired holds are given back first: nobody may have swept them lately.
if not epoch then
  return false
end
release_expired(100, clock())
publish()
return {epoch, redis.call('HGET', meta, 'revision'), places, redis.call('GET', states) or ''}
