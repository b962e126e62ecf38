-- Batches: which jobs of one have not ended, and one entry when the last of them has.
--
-- A batch is a hash (closed, how many ended how), a set of the jobs that have not ended, and, once it is
-- over, a stream of one entry that whoever waits reads. It is over when it is closed, which its client says
-- after the last submission, and the set is empty. Its name is "<tenant>:<batch id>".

local BATCH_TTL_MS = 90000000 -- 25 h, as long as the hashes of its jobs stay by default
local MAX_BATCHES = 8
local MAX_BATCH_JOBS = 32

local function has_ended(P, name)
  return redis.call('EXISTS', P .. 'over:' .. name) == 1
end

-- Ends the batch if nothing is left of it. Its stream can hold no second entry.
local function end_batch(P, name, now)
  local key = P .. 'batch:' .. name
  if send('SCARD', P .. 'left:' .. name) > 0 or has_ended(P, name) then
    return
  end
  redis.call('PEXPIRE', key, BATCH_TTL_MS)
  local v = send('HMGET', key, 'closed', 'done', 'failed', 'cancelled', 'expired')
  if v[1] ~= '1' then
    return
  end
  send('XADD', P .. 'over:' .. name, SEAL_ID, 'done', whole(v[2], 0) or 0, 'failed', whole(v[3], 0) or 0,
    'cancelled', whole(v[4], 0) or 0, 'expired', whole(v[5], 0) or 0, 'ms', now)
  redis.call('PEXPIRE', P .. 'over:' .. name, BATCH_TTL_MS)
  send('ZREM', P .. 'batches', name)
  local tenant, id = split(name)
  event(P, 'batch', { tenant = tenant, id = id }, 'ended')
end

local function open_batch(P, name, now)
  if has_ended(P, name) then -- it gets more jobs, and will end once more
    redis.call('DEL', P .. 'over:' .. name)
    send('HDEL', P .. 'batch:' .. name, 'closed')
  end
  send('HSETNX', P .. 'batch:' .. name, 'since', now)
  redis.call('PERSIST', P .. 'batch:' .. name)
  send('ZADD', P .. 'batches', 'NX', now, name)
end

local function join_batch(P, tenant, batch, id, now)
  local name = tenant .. ':' .. batch
  open_batch(P, name, now)
  send('SADD', P .. 'left:' .. name, id)
end

-- Takes a job that has ended out of its batch; the second time it changes nothing.
local function leave_batch(P, tenant, batch, id, status, now)
  local name = tenant .. ':' .. batch
  if send('SREM', P .. 'left:' .. name, id) == 1 then
    add('HINCRBY', P .. 'batch:' .. name, status, 1)
    end_batch(P, name, now)
  end
end

-- Looks at some jobs of a batch: one without a hash has not ended by our hands, and nobody would take it out.
local function check_batch(P, name, now)
  local key, left, tenant, batch = P .. 'batch:' .. name, P .. 'left:' .. name, split(name)
  local page = send('SSCAN', left, cursor(key, 'cursor'), 'COUNT', MAX_BATCH_JOBS)
  for _, id in ipairs(page[2]) do
    local status = redis.pcall('HGET', P .. 'job:' .. tenant .. ':' .. id, 'status')
    if type(status) ~= 'string' then
      leave_batch(P, tenant, batch, id, 'failed', now)
    elseif TERMINAL[status] then
      leave_batch(P, tenant, batch, id, status, now)
    end
  end
  if redis.call('EXISTS', key) == 1 and page[1] ~= '0' then
    send('HSET', key, 'cursor', page[1])
  else
    send('HDEL', key, 'cursor')
  end
  if send('SCARD', left) == 0 then -- open, or abandoned, or gone
    end_batch(P, name, now)
    send('ZREM', P .. 'batches', name)
  end
end

-- Looks at the batches that were looked at longest ago.
local function check_batches(P, now)
  for _, name in ipairs(least_recent(P .. 'batches', now, MAX_BATCHES)) do
    if split(name) then
      send('ZADD', P .. 'batches', now, name)
      check_batch(P, name, now)
    else
      send('ZREM', P .. 'batches', name)
    end
  end
end

-- ARGV: tenant, batch. Says that all of its jobs were submitted.
local function batch_close(keys, argv)
  local P, name, now = keys[1], argv[1] .. ':' .. argv[2], now_ms()
  if not has_ended(P, name) then
    open_batch(P, name, now)
    send('HSET', P .. 'batch:' .. name, 'closed', '1')
    end_batch(P, name, now)
  end
  return { 'OK' }
end

redis.register_function { function_name = 'ts1_batch_close', callback = batch_close, flags = { 'allow-oom' } }
