-- The Scheduler's call: which jobs a session gets next.

local AGING = 8
local PAGE = 16
-- What one call may drop and seal, and whom it may pass over, so that it cannot hold the server for long.
local MAX_CLEARED = 64
local MAX_PASSED = 1024

-- Drops what stands in a queue and is no job that can be claimed.
local function drop(P, call, tenant, id, reason, raw)
  call.cleared = call.cleared + 1
  dead_letter(P, tenant, id, reason, 0, raw)
  if reason == 'broken' then
    write_off(P, tenant .. ':' .. id, call.now, 'queued')
  end
end

local function may_start(P, call, tenant)
  if not call.room[tenant] then
    call.room[tenant] = room(P, tenant, call.now)
  end
  return call.room[tenant] > 0
end

-- Whether a job can be claimed; if not, it is ended.
local function claimable(P, call, job)
  local flaw
  if job.deadline > 0 and job.deadline <= call.now then
    call.cleared = call.cleared + 1
    seal(P, job, call.now, 'expired')
    return false
  elseif send('HEXISTS', P .. 'job:' .. job.member, 'payload') == 0 then
    flaw = 'the job has no payload'
  elseif not num_tokens(P, job) then
    flaw = 'the result stream is not the one that the job wrote'
  end
  if flaw then
    call.cleared = call.cleared + 1
    bury(P, job, call.now, { code = 'RecordInvalid', message = flaw })
  end
  return not flaw
end

-- The oldest of the class's jobs that ran before.
local function take_again(P, call, class)
  local again, passed = P .. 'again:' .. class, 0
  while passed < MAX_PASSED and call.cleared < MAX_CLEARED do
    local members = send('ZRANGE', again, passed, passed + PAGE - 1)
    if #members == 0 then
      return nil
    end
    for _, member in ipairs(members) do
      local tenant, id = split(member)
      if tenant and not may_start(P, call, tenant) then
        passed = passed + 1
      else
        send('ZREM', again, member)
        local job, problem = load_job(P, member)
        if not job then
          drop(P, call, tenant or '', id or member, problem)
        elseif job.status ~= 'queued' then
          call.cleared = call.cleared + 1
        elseif claimable(P, call, job) then
          return job
        end
      end
    end
  end
  return nil
end

-- The job of a tenant's first queue entry that is one; nil when the queue holds none.
local function first_of_queue(P, call, class, tenant)
  local queue = P .. 'in:' .. class .. ':' .. tenant
  while call.cleared < MAX_CLEARED do
    local entries = redis.pcall('XRANGE', queue, '-', '+', 'COUNT', 1)
    if entries.err then
      drop(P, call, tenant, '', 'queue is not a stream')
      leave(P, class, tenant)
      return nil
    end
    if #entries == 0 then
      leave(P, class, tenant)
      return nil
    end
    local entry, fields = entries[1][1], entries[1][2]
    local id = fields[1] == 'job' and fields[2] or ''
    local job, problem
    if string.match(id, '^[%w._-]+$') then
      job, problem = load_job(P, tenant .. ':' .. id)
    else
      problem = 'not a job'
    end
    if job and job.entry == entry then
      if claimable(P, call, job) then
        return job
      end
    else
      send('XDEL', queue, entry)
      drop(P, call, tenant, string.sub(id, 1, 128), problem or 'stale', string.sub(cmsgpack.pack(fields), 1, 4096))
    end
  end
  return nil
end

-- The first job of the tenant of least virtual time that may start one.
local function take_fair(P, call, class)
  local ready, passed = P .. 'ready:' .. class, 0
  while passed < MAX_PASSED and call.cleared < MAX_CLEARED do
    local tenants = send('ZRANGE', ready, passed, passed + PAGE - 1, 'WITHSCORES')
    if #tenants == 0 then
      return nil
    end
    for i = 1, #tenants, 2 do
      local tenant, start = tenants[i], tenants[i + 1]
      if not may_start(P, call, tenant) then
        passed = passed + 1
      else
        local job = first_of_queue(P, call, class, tenant)
        if job then
          local wfq = P .. 'wfq:' .. class
          if tonumber(start) > amount(send('HGET', wfq, 'vmin')) then
            send('HSET', wfq, 'vmin', start)
          end
          charge(P, class, tenant, job.cost)
          job.charged = job.cost
          return job
        end
      end
    end
  end
  return nil
end

-- The next job by class: the first that has one, and each AGING-th time the last that has one.
local function next_job(P, call)
  local turn = amount(send('HGET', P .. 'wfq:0', 'turn')) + 1
  for i = 1, #CLASSES do
    local class = CLASSES[turn % AGING == 0 and #CLASSES + 1 - i or i]
    local job = take_again(P, call, class) or take_fair(P, call, class)
    if job then
      send('HSET', P .. 'wfq:0', 'turn', turn)
      return job
    end
  end
  return nil
end

-- Makes the session the job's owner and returns what the worker needs; nil if the stream is sealed.
local function grant(P, call, job, session)
  local key, mk, claims = P .. 'job:' .. job.member, job.mk + 1, job.claims + 1
  local n = num_tokens(P, job)
  local marker = redis.pcall('XADD', P .. 'out:' .. job.member, n .. '-' .. mk, 'm',
    cmsgpack.pack({ claims, session, call.now }))
  if type(marker) == 'table' then
    call.cleared = call.cleared + 1
    bury(P, job, call.now, { code = 'RecordInvalid', message = 'the result stream takes no entries' })
    return nil
  end
  detach(P, job)
  account(P, job, 'running')
  call.room[job.tenant] = nil -- to be looked up again: the tenant has been charged
  send('HSET', key, 'status', 'running', 'owner', session, 'mk', mk, 'claims', claims, 'claim_n', n,
    'claimed', call.now, 'charged', job.charged or job.cost)
  send('HSET', P .. 'own:' .. session, job.member, mk .. ':' .. job.grain)
  send('ZADD', P .. 'running', call.now, job.member)
  event(P, 'claim', job, 'running', session)
  return { job.tenant, job.id, mk, send('HGET', key, 'payload'), n, claims, job.suspect and 1 or 0,
    job.submitted, job.grain }
end

-- ARGV: session, k. No nonce: the Scheduler calls it for the session.
local function claim(keys, argv)
  local P, session = keys[1], argv[1]
  local call = { now = now_ms(), cleared = 0, room = {} }
  local v = redis.pcall('HMGET', P .. 'session:' .. session, 'slots', 'draining')
  local slots, num_owned = whole(v[1], 0), redis.pcall('HLEN', P .. 'own:' .. session)
  local lease = tonumber(send('ZSCORE', P .. 'leases', session))
  if not slots or type(num_owned) ~= 'number' or not lease or lease < call.now then
    return { 'FENCED' }
  end
  local rows = { 'OK', call.now }
  if v[2] == '1' then
    return rows
  end
  local k = math.min(tonumber(argv[2]), slots - num_owned)
  while #rows - 2 < k do
    local job = next_job(P, call)
    if not job then
      break
    end
    local row = grant(P, call, job, session)
    if row then
      table.insert(rows, row)
    end
  end
  return rows
end

redis.register_function { function_name = 'ts1_claim', callback = claim, flags = { 'allow-oom' } }
