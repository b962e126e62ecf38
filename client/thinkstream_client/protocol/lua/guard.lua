-- What stands between the functions and bytes that others wrote into our keys.
--
-- A key that none of our commands can work with, because it is of another type or takes no more entries, would
-- end every call that touches it. It is renamed to "<key>:broken", so that what it held can still be looked at for a
-- day, a dead letter names it, and the call goes on as if it had not been there. Of several within that day the first
-- stays, which may hold what was ours, and those after it are dropped.

local BROKEN_TTL_MS = 86400000
local MAX_EVENTS = 10000
local MAX_DEAD = 1000
local SEAL_ID = '18446744073709551615-18446744073709551615'

-- The keys of a partition that everybody shares. That of the dead letters comes first: it takes the others' names.
local SHARED = {
  { 'dead', 'stream' }, { 'events', 'stream' }, { 'leases', 'zset' }, { 'running', 'zset' }, { 'due', 'zset' },
  { 'ended', 'zset' }, { 'batches', 'zset' }, { 'tenants', 'hash' }, { 'usage', 'hash' },
  { 'again:0', 'zset' }, { 'again:1', 'zset' }, { 'again:2', 'zset' },
  { 'ready:0', 'zset' }, { 'ready:1', 'zset' }, { 'ready:2', 'zset' },
  { 'wfq:0', 'hash' }, { 'wfq:1', 'hash' }, { 'wfq:2', 'hash' },
}

local function is_error(reply)
  return type(reply) == 'table' and reply.err ~= nil
end

local function is_wrong_type(reply)
  return is_error(reply) and string.find(reply.err, 'WRONGTYPE', 1, true) == 1
end

-- Takes a key away that stands in the way. Tenants have no right to: they leave it to the next sweep.
local function set_aside(key)
  local aside, what = key .. ':broken', 'key set aside: '
  local renamed = redis.pcall('RENAMENX', key, aside)
  if is_error(renamed) then
    return
  end
  if renamed == 1 then
    redis.call('PEXPIRE', aside, BROKEN_TTL_MS)
  else
    what = 'key dropped: '
    redis.call('UNLINK', key)
  end
  local P, name = string.match(key, '^([^{]*{%d+}:)(.*)$')
  redis.pcall('XADD', P .. 'dead', 'MAXLEN', '~', MAX_DEAD, '*', 'tenant', '', 'job', '',
    'reason', what .. name, 'attempts', 0, 'payload', '', 'error', '')
end

-- redis.call for a key of ours, which from then on is of the right type or not there.
local function send(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if is_wrong_type(reply) then
    set_aside(key)
  end
  if is_error(reply) then
    return redis.call(command, key, ...)
  end
  return reply
end

-- What a command says that only reads, nil where the key is of another type: for functions that may not write.
local function peek(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if is_wrong_type(reply) then
    return nil
  end
  if is_error(reply) then
    return redis.call(command, key, ...)
  end
  return reply
end

-- Appends to a stream and returns the entry's id. One whose last id is the highest takes nothing more, either.
local function append(key, ...)
  local entry = redis.pcall('XADD', key, ...)
  if is_error(entry) then
    set_aside(key)
    entry = redis.call('XADD', key, ...)
  end
  return entry
end

-- Where a walk over many things goes on; at the start where others wrote there.
local function cursor(key, field)
  local text = send('HGET', key, field)
  return text and #text < 20 and string.match(text, '^%d+$') or '0'
end

-- Adds to a field of a hash by the command given and returns the sum; one that holds no number begins anew.
local function add(command, key, field, by)
  local sum = redis.pcall(command, key, field, by)
  if is_error(sum) then
    send('HSET', key, field, by)
    sum = by
  end
  return tonumber(sum)
end

-- Sees to the keys that everybody shares, for those who may not rename them.
local function heal(P)
  for _, shared in ipairs(SHARED) do
    local key, kind = P .. shared[1], redis.call('TYPE', P .. shared[1]).ok
    local last = kind == 'stream' and redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    if (kind ~= shared[2] and kind ~= 'none') or (last and last[1] == SEAL_ID) then
      set_aside(key)
    end
  end
end
