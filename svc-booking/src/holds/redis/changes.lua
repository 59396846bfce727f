-- What changed since a revision, the newest first. Without the changes if it is too old or of another epoch.
local of_epoch, since = ARGV[2], tonumber(ARGV[3])
if not epoch then
  return false
end
local revision = redis.call('HGET', meta, 'revision')
local count = revision - since
if of_epoch ~= epoch or count < 0 or count > redis.call('LLEN', changes) then
  return {epoch, revision}
end
return {epoch, revision, count > 0 and redis.call('LRANGE', changes, 0, count - 1) or {}}
