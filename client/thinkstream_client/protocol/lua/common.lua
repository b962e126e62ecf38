-- What every function shares: time, keys, the job's hash, counters, events.
--
-- P is the prefix of the partition's keys (KEYS[1]). A member is "<tenant>:<job id>", the name under which
-- sets and sorted sets know a job; neither part may hold a colon.

local DAY_MS = 86400000
local CLASSES = { 0, 1, 2 }
local MAX_GRAIN = 1024
local WIRE_VERSION = 1

local TERMINAL = { done = true, cancelled = true, expired = true, failed = true }
-- Which of a tenant's counters a job is in.
local COUNTED_AS = { queued = 'queued', waiting = 'queued', running = 'running' }

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function split(member)
  return string.match(member, '^([%w._-]+):([%w._-]+)$')
end

-- Adds to a counter and removes it at zero, so that a tenant who left leaves nothing behind.
local function count(P, tenant, what, by)
  local field = tenant .. ':' .. what
  if add('HINCRBY', P .. 'usage', field, by) <= 0 then
    send('HDEL', P .. 'usage', field)
  end
end

-- Adds to the number of jobs that wait to be tried again.
local function count_retrying(P, by)
  if add('HINCRBY', P .. 'wfq:0', 'retrying', by) < 0 then
    send('HDEL', P .. 'wfq:0', 'retrying')
  end
end

local function event(P, kind, job, status, session)
  append(P .. 'events', 'MAXLEN', '~', MAX_EVENTS, '*', 'kind', kind, 'tenant', job.tenant, 'job', job.id,
    'status', status, 'session', session or '')
end

local function is_name(text)
  return #text <= 128 and string.match(text, '^[%w._-]+$') ~= nil
end

-- The whole number from low to high that a text stands for, nil for any other text: written as we write it, for
-- it may become part of a key. Lua would take "0x1", "1e0" and " 1 " as well. Without a high it is one that Lua
-- and the commands of Redis hold exactly.
local function whole(text, low, high)
  local number = text and (text == '0' or string.match(text, '^%-?[1-9]%d*$')) and tonumber(text)
  if number and number >= low and number <= (high or 1e13) then
    return number
  end
  return nil
end

-- The members of a sorted set that were looked at longest ago, by the times that they carry. A time that is yet
-- to come is of a clock that has gone back since, and comes first: behind those of the new time it would wait
-- for as long as the clock jumped.
local function least_recent(key, now, limit)
  local ahead = send('ZRANGE', key, '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, limit)
  return #ahead > 0 and ahead or send('ZRANGE', key, 0, limit - 1)
end

-- Whether a text is the id that a queue gave to an entry: Redis refuses every call with one beyond its range.
local function is_entry(text)
  local ms, number = string.match(text, '^(%d+)%-(%d+)$')
  return ms ~= nil and #ms < 20 and #number < 20
end

-- The job's hash as a table, or nil and why: 'missing' or 'broken'.
local function load_job(P, member)
  local tenant, id = split(member)
  if not tenant then
    return nil, 'broken'
  end
  local v = redis.pcall('HMGET', P .. 'job:' .. member, 'status', 'grain', 'cost', 'entry', 'mk', 'attempts',
    'owner', 'deadline', 'priority', 'suspect', 'claim_n', 'claims', 'submitted', 'ttl', 'bytes', 'tags', 'charged',
    'batch', 'prompt_cost')
  if v.err then
    return nil, 'broken'
  end
  if not v[1] then
    return nil, 'missing'
  end
  local job = {
    tenant = tenant, id = id, member = member, status = v[1], grain = whole(v[2], 1, MAX_GRAIN), cost = whole(v[3], 0),
    entry = v[4], mk = whole(v[5], 0), attempts = whole(v[6], 0) or 0, owner = v[7],
    deadline = whole(v[8], 0) or 0, priority = whole(v[9], 0, #CLASSES - 1), suspect = v[10] == '1',
    claim_n = whole(v[11], 0) or 0, claims = whole(v[12], 0) or 0, submitted = whole(v[13], 0),
    ttl = whole(v[14], 1), bytes = whole(v[15], 0) or 0, tags = v[16] or '', charged = whole(v[17], 0),
    batch = v[18] and is_name(v[18]) and v[18] or '', prompt_cost = whole(v[19], 0),
  }
  local is_known = TERMINAL[job.status] or COUNTED_AS[job.status]
  local has_numbers = job.grain and job.cost and job.mk and job.priority and job.submitted and job.ttl
  if not (is_known and has_numbers) or (job.entry and not is_entry(job.entry)) then
    return nil, 'broken'
  end
  return job
end

-- Tokens published so far: every entry that is no marker holds a grain. Nil if the stream is not ours.
local function num_tokens(P, job)
  local length = redis.pcall('XLEN', P .. 'out:' .. job.member)
  if type(length) ~= 'number' or length < job.mk then
    return nil
  end
  return (length - job.mk) * job.grain
end

-- Moves the job from the counter of its status to that of the next one.
local function account(P, job, status)
  local from, to = COUNTED_AS[job.status], COUNTED_AS[status]
  if from ~= to then
    if from then count(P, job.tenant, from, -1) end
    if to then count(P, job.tenant, to, 1) end
    if from == 'queued' then count(P, job.tenant, 'bytes', -job.bytes) end
    if to == 'queued' then count(P, job.tenant, 'bytes', job.bytes) end
  end
  job.status = status
end

-- Keeps what could not be done. With a job as load_job gives it the letter holds all that makes it one again.
local function dead_letter(P, tenant, id, reason, attempts, payload, failure, job)
  local letter = { 'tenant', tenant, 'job', id, 'reason', reason, 'attempts', attempts, 'payload', payload or '',
    'error', failure or '' }
  if job then
    local digest = redis.pcall('HGET', P .. 'job:' .. job.member, 'digest')
    for _, part in ipairs({ 'digest', type(digest) == 'string' and digest or '', 'grain', job.grain, 'cost', job.cost,
      'prompt_cost', job.prompt_cost or '', 'priority', job.priority, 'ttl', job.ttl, 'tags', job.tags }) do
      letter[#letter + 1] = part
    end
  end
  append(P .. 'dead', 'MAXLEN', '~', MAX_DEAD, '*', unpack(letter))
end

-- The session's lease length, or nil if the caller is not that session (any more).
local function check_nonce(P, session, nonce)
  local v = redis.pcall('HMGET', P .. 'session:' .. session, 'nonce', 'lease_ms')
  if v[1] and v[1] == nonce then
    return whole(v[2], 1, DAY_MS)
  end
  return nil
end
