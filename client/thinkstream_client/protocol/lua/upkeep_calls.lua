-- What keeps the queue whole: reap, sweep, the tenants' settings, the namespace's identity, the library's own.

local MAX_SESSIONS = 16
local MAX_LEASES = 64
local MAX_DUE = 256
local MAX_CHECKED = 32
-- Deaths that name no job and that one may be part of before they count against it.
local MAX_UNNAMED = 6

-- Counts the death against the job if the session was stepping it alone; see "Poison" of the protocol. What
-- kills its worker before it is stepped, while its text is read, is never named and so is counted in the end.
local function judge(P, job, alone)
  if alone == job.member then
    job.attempts, job.suspect = job.attempts + 1, true
  elseif alone == '' then
    job.suspect = true
    if add('HINCRBY', P .. 'job:' .. job.member, 'unnamed', 1) > MAX_UNNAMED then
      job.attempts = job.attempts + 1
    end
  end
end

-- Takes every job of a session that is dead, or broken; returns how many are in line again.
local function reap_session(P, session, now, flaw)
  local alone = send('HGET', P .. 'session:' .. session, 'alone') or ''
  local requeued = 0
  for _, member in ipairs(held_by(P, session)) do
    local job = load_job(P, member)
    if job then
      if not clear_by_progress(P, job) then
        judge(P, job, alone)
      end
      if job.attempts >= MAX_ATTEMPTS then
        send('HSET', P .. 'job:' .. member, 'attempts', job.attempts)
        bury(P, job, now, { code = 'WorkerDied', message = 'its worker died each time it was tried',
          data = { attempts = job.attempts } })
      else
        requeue(P, job, 'reap')
        requeued = requeued + 1
      end
    end
  end
  end_session(P, session)
  event(P, 'gone', { tenant = '', id = '' }, flaw or '', session)
  return requeued
end

-- ARGV: session or '' (then those whose lease is over)
local function reap(keys, argv)
  local P, now = keys[1], now_ms()
  local sessions = { argv[1] }
  if argv[1] == '' then
    sessions = send('ZRANGE', P .. 'leases', '-inf', now, 'BYSCORE', 'LIMIT', 0, MAX_SESSIONS)
  end
  local requeued = 0
  for _, session in ipairs(sessions) do
    if send('ZSCORE', P .. 'leases', session) or redis.call('EXISTS', P .. 'own:' .. session) == 1 then
      requeued = requeued + reap_session(P, session, now)
    end
  end
  return requeued
end

-- The lease length of a session that could be given jobs, renew its lease and lose it; nil for any other.
local function lease_of(P, session)
  local v = redis.pcall('HMGET', P .. 'session:' .. session, 'nonce', 'slots', 'lease_ms')
  local num_owned = redis.pcall('HLEN', P .. 'own:' .. session)
  return v[1] and whole(v[2], 0) and type(num_owned) == 'number' and whole(v[3], 1, DAY_MS) or nil
end

-- Reaps sessions that are none: nothing that such a one owns would ever end. Of the others it shortens a lease
-- that ends later than one renewed now, as all do when the server's clock has gone back: who lives renews it in
-- time, and who is dead is not taken for alive until the clock is there again. A page of them at a time.
local function check_sessions(P, now)
  local page = send('ZSCAN', P .. 'leases', cursor(P .. 'wfq:0', 'leases'), 'COUNT', MAX_LEASES)
  local requeued = 0
  for i = 1, #page[2], 2 do
    local session, lease = page[2][i], tonumber(page[2][i + 1])
    local lease_ms = lease_of(P, session)
    if not lease_ms then
      requeued = requeued + reap_session(P, session, now, 'broken')
    elseif lease > now + lease_ms then
      send('ZADD', P .. 'leases', now + lease_ms, session)
    end
  end
  send('HSET', P .. 'wfq:0', 'leases', page[1])
  return requeued
end

-- Removes a job whose hash is gone from the lists of its tenant.
local function forget(P, name)
  local tenant, id, tags = string.match(name, '^([^:]+):([^:]+):(.*)$')
  if not tenant or redis.call('EXISTS', P .. 'job:' .. tenant .. ':' .. id) == 1 then
    return
  end
  send('ZREM', P .. 'jobs:' .. tenant, id)
  for tag in string.gmatch(tags, '[^:]+') do
    send('ZREM', P .. 'tag:' .. tenant .. ':' .. tag, id)
  end
end

-- Takes a page of what is due out of a sorted set, and notes where there may be more.
local function take_due(key, now, done)
  local items = send('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, MAX_DUE)
  for _, item in ipairs(items) do
    send('ZREM', key, item)
  end
  if #items == MAX_DUE then
    done.more = 1
  end
  return items
end

-- Brings retries forward that are further ahead than any is ever put, as all are when the server's clock has
-- gone back. A page of them at a time.
local function bring_forward(P, now)
  local due, wfq = P .. 'due', P .. 'wfq:0'
  local page = send('ZSCAN', due, cursor(wfq, 'due'), 'MATCH', 'retry:*', 'COUNT', MAX_DUE)
  for i = 1, #page[2], 2 do
    if tonumber(page[2][i + 1]) > now + MAX_BACKOFF_MS then
      send('ZADD', due, now, page[2][i])
    end
  end
  send('HSET', wfq, 'due', page[1])
end

local function do_due(P, now, done)
  for _, item in ipairs(take_due(P .. 'due', now, done)) do
    local kind, name = string.match(item, '^(%a+):(.*)$')
    if kind == 'retry' then
      count_retrying(P, -1)
    end
    local job, problem
    if kind == 'retry' or kind == 'deadline' then
      job, problem = load_job(P, name)
    end
    if problem == 'broken' then
      condemn(P, name, now, kind == 'retry' and 'queued' or nil)
    elseif kind == 'retry' and job and job.status == 'waiting' then
      requeue(P, job, 'retry')
      done.retried = done.retried + 1
    elseif kind == 'deadline' and job and not TERMINAL[job.status] then
      -- A tenant may write to this set, so the job itself has the last word.
      if job.deadline > now then
        send('ZADD', P .. 'due', job.deadline, item)
      else
        seal(P, job, now, 'expired')
        done.expired = done.expired + 1
      end
    end
  end
  for _, name in ipairs(take_due(P .. 'ended', now, done)) do
    forget(P, name)
  end
end

-- Looks at the running jobs that were looked at longest ago: each must have a living owner that knows it.
local function repair(P, now, done)
  local running = P .. 'running'
  for _, member in ipairs(least_recent(running, now, MAX_CHECKED)) do
    local job, problem = load_job(P, member)
    if problem == 'broken' then
      condemn(P, member, now, 'running')
    end
    if not job or job.status ~= 'running' then
      send('ZREM', running, member)
    elseif job.owner and send('ZSCORE', P .. 'leases', job.owner)
      and send('HEXISTS', P .. 'own:' .. job.owner, member) == 1 then
      send('ZADD', running, now, member)
    else
      clear_by_progress(P, job)
      requeue(P, job, 'repair')
      done.repaired = done.repaired + 1
    end
  end
end

-- Forgets the virtual time of tenants that would enter at vmin anyway, and of all where nobody waits: they
-- start level again.
local function tidy_virtual_times(P)
  for _, class in ipairs(CLASSES) do
    local wfq = P .. 'wfq:' .. class
    local level = redis.call('EXISTS', P .. 'ready:' .. class) == 0 and math.huge
      or amount(send('HGET', wfq, 'vmin'))
    local page = send('HSCAN', wfq, cursor(wfq, 'cursor'), 'MATCH', 'vt:*', 'COUNT', 64)
    for i = 1, #page[2], 2 do
      if amount(page[2][i + 1]) <= level then
        send('HDEL', wfq, page[2][i])
      end
    end
    if page[1] ~= '0' then
      send('HSET', wfq, 'cursor', page[1])
    else
      send('HDEL', wfq, 'cursor')
    end
  end
end

local function sweep(keys)
  local P, now, done = keys[1], now_ms(), { retried = 0, expired = 0, repaired = 0, more = 0 }
  heal(P)
  done.repaired = check_sessions(P, now)
  bring_forward(P, now)
  do_due(P, now, done)
  repair(P, now, done)
  check_batches(P, now)
  find_lost(P, now, done)
  tidy_virtual_times(P)
  return { done.retried, done.expired, done.repaired, done.more }
end

-- ARGV: tenant, then name, value...; '' removes a setting, and with a rate what is left of it
local function tenant_set(keys, argv)
  local key = keys[1] .. 'tenants'
  for i = 2, #argv, 2 do
    local field = argv[1] .. ':' .. argv[i]
    if argv[i + 1] == '' then
      send('HDEL', key, field)
      if argv[i] == 'rate' then
        send('HDEL', keys[1] .. 'usage', argv[1] .. ':level', argv[1] .. ':level_ms')
      end
    else
      send('HSET', key, field, argv[i + 1])
    end
  end
  return { 'OK' }
end

-- KEYS[1] is the namespace's meta key. ARGV: name, value... Sets what is missing, returns all.
local function meta(keys, argv)
  for i = 1, #argv, 2 do
    redis.call('HSETNX', keys[1], argv[i], argv[i + 1])
  end
  return redis.call('HGETALL', keys[1])
end

-- What waits and runs: enough for a status page and the scheduler's policy.
local function backlog(keys)
  local P = keys[1]
  local rows = {}
  for _, class in ipairs(CLASSES) do
    rows[#rows + 1] = { class, '', peek('ZCARD', P .. 'again:' .. class) or 0 }
    for _, tenant in ipairs(peek('ZRANGE', P .. 'ready:' .. class, 0, 999) or {}) do
      rows[#rows + 1] = { class, tenant, peek('XLEN', P .. 'in:' .. class .. ':' .. tenant) or 0 }
    end
  end
  return { rows, peek('ZCARD', P .. 'running') or 0, amount(peek('HGET', P .. 'wfq:0', 'retrying')),
    peek('XLEN', P .. 'dead') or 0 }
end

local function sessions(keys)
  local P, now, rows = keys[1], now_ms(), {}
  local leases = peek('ZRANGE', P .. 'leases', 0, -1, 'WITHSCORES') or {}
  for i = 1, #leases, 2 do
    local num_owned = peek('HLEN', P .. 'own:' .. leases[i])
    local fields = peek('HGETALL', P .. 'session:' .. leases[i])
    if num_owned and fields then
      rows[#rows + 1] = { leases[i], leases[i + 1] - now, num_owned, fields }
    end
  end
  return rows
end

local function tenants(keys)
  return { peek('HGETALL', keys[1] .. 'tenants') or {}, peek('HGETALL', keys[1] .. 'usage') or {} }
end

local function build()
  return { BUILD, DIGEST }
end

redis.register_function { function_name = 'ts1_reap', callback = reap, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_sweep', callback = sweep, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_tenant_set', callback = tenant_set, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_meta', callback = meta, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_backlog', callback = backlog, flags = { 'no-writes' } }
redis.register_function { function_name = 'ts1_sessions', callback = sessions, flags = { 'no-writes' } }
redis.register_function { function_name = 'ts1_tenants', callback = tenants, flags = { 'no-writes' } }
redis.register_function { function_name = 'ts1_build', callback = build, flags = { 'no-writes' } }
