-- How fast a tenant's jobs end while some wait, for telling a client that was refused when to come back.
--
-- A moving average of the time between two ends, kept only for tenants that have a cap, and forgotten by
-- itself when none of their jobs has ended for a while.

local PACE_TTL_MS = 600000
local PACE_SHARE = 8 -- an end moves the average by an eighth of what it differs
local UNKNOWN_MS, MIN_RETRY_MS, MAX_RETRY_MS = 1000, 100, 60000

-- A tenant's first job waits: the time before counts for nothing.
local function note_begin(P, tenant, now)
  send('HSET', P .. 'pace:' .. tenant, 'last', now)
  redis.call('PEXPIRE', P .. 'pace:' .. tenant, PACE_TTL_MS)
end

local function note_end(P, tenant, now)
  local caps = send('HMGET', P .. 'tenants', tenant .. ':jobs', tenant .. ':bytes')
  if not (caps[1] or caps[2]) then
    return
  end
  local key = P .. 'pace:' .. tenant
  local v = send('HMGET', key, 'every_ms', 'last')
  local every_ms, last = number(v[1], 0, MANY), number(v[2], 0, MANY)
  if last then
    local passed = math.max(0, now - last)
    every_ms = every_ms and every_ms + (passed - every_ms) / PACE_SHARE or passed
    send('HSET', key, 'every_ms', string.format('%.3f', every_ms))
  end
  send('HSET', key, 'last', now)
  redis.call('PEXPIRE', key, PACE_TTL_MS)
end

-- When there may be room: the usual time between ends, or that since the last one where it is longer, times
-- the jobs of mean size that must go first.
local function retry_ms(P, tenant, excess_bytes)
  local v = send('HMGET', P .. 'pace:' .. tenant, 'every_ms', 'last')
  local last = number(v[2], 0, MANY)
  if not last then
    return UNKNOWN_MS
  end
  local num_jobs = 1
  if excess_bytes then
    local used = send('HMGET', P .. 'usage', tenant .. ':queued', tenant .. ':bytes')
    local mean = amount(used[2]) / math.max(1, amount(used[1]))
    num_jobs = math.max(1, math.ceil(excess_bytes / math.max(1, mean)))
  end
  local wait = math.max(amount(v[1]), now_ms() - last) * num_jobs
  return math.floor(math.min(MAX_RETRY_MS, math.max(MIN_RETRY_MS, wait)))
end
