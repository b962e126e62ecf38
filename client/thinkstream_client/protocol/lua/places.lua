-- Where a living job is looked for, and the walk over the keys that puts back what is not there.

local MAX_SCANNED = 128

-- Whether the place where a living job is looked for names it.
local function has_place(P, job)
  if job.status == 'running' then
    return send('ZSCORE', P .. 'running', job.member)
  elseif job.status == 'waiting' then
    return send('ZSCORE', P .. 'due', 'retry:' .. job.member)
  elseif not job.entry then
    return send('ZSCORE', P .. 'again:' .. job.priority, job.member)
  end
  local found = send('XRANGE', P .. 'in:' .. job.priority .. ':' .. job.tenant, job.entry, job.entry)[1]
  return found and found[2][2] == job.id
end

-- Puts a living job back that its place does not name. One that never ran goes behind all that its tenant has
-- waiting: among those that ran before it would come ahead of its turn, and uncharged.
local function put_back(P, job)
  if job.status == 'running' then
    send('ZADD', P .. 'running', 0, job.member) -- and `repair` looks whether its owner lives
  elseif job.entry then
    local entry = append(P .. 'in:' .. job.priority .. ':' .. job.tenant, '*', 'job', job.id, 'cost', job.cost)
    send('HSET', P .. 'job:' .. job.member, 'entry', entry)
    enter(P, job.priority, job.tenant)
    event(P, 'repair', job, 'queued')
  else
    if job.status == 'waiting' then
      count_retrying(P, -1)
    end
    requeue(P, job, 'repair')
  end
end

-- Sees to a job that a walk over the keys has met: it ends where its time is over, and has its place.
local function look_after(P, member, now, done)
  local job, problem = load_job(P, member)
  if problem == 'broken' and redis.call('PTTL', P .. 'job:' .. member) == -1 then -- not written off yet
    condemn(P, member, now)
  end
  if not job or TERMINAL[job.status] then
    return
  end
  if job.deadline > 0 and job.deadline <= now then
    seal(P, job, now, 'expired')
    done.expired = done.expired + 1
    return
  elseif job.deadline > 0 then
    send('ZADD', P .. 'due', job.deadline, 'deadline:' .. member)
  end
  if not has_place(P, job) then
    put_back(P, job)
    done.repaired, done.more = done.repaired + 1, 1 -- what happened to one happened to others
  end
end

-- Walks over the keys, a page at a time, for what nothing else leads to: queues that `submit` did not write, and
-- jobs whose place others wrote over. A job's hash is the last that tells of it: who loses that has lost the job.
local function find_lost(P, now, done)
  local wfq = P .. 'wfq:0'
  local page = redis.call('SCAN', cursor(wfq, 'scanned'), 'MATCH', P .. '*', 'COUNT', MAX_SCANNED)
  for _, key in ipairs(page[2]) do
    local name = string.sub(key, #P + 1)
    local class, tenant = string.match(name, '^in:([0-2]):([%w._-]+)$')
    local member = string.match(name, '^job:(.*)$')
    if tenant then
      enter(P, class, tenant)
    elseif member then
      look_after(P, member, now, done)
    end
  end
  send('HSET', wfq, 'scanned', page[1])
end
