-- Weighted fair queueing over tenants, by start time: each class has a sorted set of the tenants with a
-- backlog by virtual time, and a hash with the virtual time of the job served last (vmin) and that of
-- tenants without backlog (vt:<tenant>).

local NUM_BURST_S = 10
local MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000
local MANY = 1e18

-- A text as a number within bounds, nil for any other: to Lua "nan" and "inf" are numbers too.
local function number(text, low, high)
  local value = tonumber(text)
  return value and value >= low and value <= high and value or nil
end

-- A tenant's cap or what it uses of one; what is no number counts for nothing.
local function amount(text)
  return number(text, 0, MANY) or 0
end

local function virtual_time(P, class, tenant)
  local v = send('HMGET', P .. 'wfq:' .. class, 'vmin', 'vt:' .. tenant)
  return math.max(amount(v[1]), amount(v[2]))
end

-- Puts a tenant among those with a backlog; a newcomer may not be served for the time it was away.
local function enter(P, class, tenant)
  local ready = P .. 'ready:' .. class
  if not send('ZSCORE', ready, tenant) then
    send('ZADD', ready, virtual_time(P, class, tenant), tenant)
    send('HDEL', P .. 'wfq:' .. class, 'vt:' .. tenant)
  end
end

local function leave(P, class, tenant)
  local score = send('ZSCORE', P .. 'ready:' .. class, tenant)
  if score then
    send('ZREM', P .. 'ready:' .. class, tenant)
    send('HSET', P .. 'wfq:' .. class, 'vt:' .. tenant, score)
  end
  redis.call('DEL', P .. 'in:' .. class .. ':' .. tenant)
end

-- Takes an entry out of a tenant's queue; an empty stream would stay, so it is deleted.
local function dequeue(P, class, tenant, entry)
  local queue = P .. 'in:' .. class .. ':' .. tenant
  send('XDEL', queue, entry)
  if send('XLEN', queue) == 0 then
    leave(P, class, tenant)
  end
end

-- Moves a tenant's virtual time by what a job cost, or cost more or less than was charged.
local function charge(P, class, tenant, cost)
  local v = send('HMGET', P .. 'tenants', tenant .. ':weight', tenant .. ':rate')
  local passed = cost / (number(v[1], MIN_WEIGHT, MAX_WEIGHT) or 1)
  if send('ZSCORE', P .. 'ready:' .. class, tenant) then
    send('ZINCRBY', P .. 'ready:' .. class, passed, tenant)
  else
    add('HINCRBYFLOAT', P .. 'wfq:' .. class, 'vt:' .. tenant, string.format('%.6f', passed))
  end
  if v[2] then
    add('HINCRBYFLOAT', P .. 'usage', tenant .. ':level', string.format('%.6f', -cost))
  end
end

-- What a tenant may still start: a count of jobs, zero where its rate of tokens is used up.
--
-- The rate is a bucket that may go into debt: a job is charged when claimed and corrected when it ends.
local function room(P, tenant, now)
  local caps = send('HMGET', P .. 'tenants', tenant .. ':running', tenant .. ':rate')
  local max_running, rate = amount(caps[1]), amount(caps[2])
  if rate > 0 then
    local usage = P .. 'usage'
    local v = send('HMGET', usage, tenant .. ':level', tenant .. ':level_ms')
    local full = rate * NUM_BURST_S
    local level, since = full, number(v[2], 0, MANY)
    if since then
      level = math.min(full, (number(v[1], -MANY, MANY) or 0) + rate * math.max(0, now - since) / 1000)
    end
    send('HSET', usage, tenant .. ':level', string.format('%.6f', level), tenant .. ':level_ms', now)
    if level <= 0 then
      return 0
    end
  end
  if max_running <= 0 then
    return math.huge
  end
  return max_running - amount(send('HGET', P .. 'usage', tenant .. ':running'))
end
