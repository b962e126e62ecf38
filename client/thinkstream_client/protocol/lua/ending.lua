-- How a job leaves an owner: back into line, later once more, or for good.

-- Takes the job out of every place where it waits or is owned.
local function detach(P, job)
  if job.entry then
    dequeue(P, job.priority, job.tenant, job.entry)
  end
  if job.owner then
    redis.call('HDEL', P .. 'own:' .. job.owner, job.member)
  end
  redis.call('ZREM', P .. 'running', job.member)
  redis.call('ZREM', P .. 'again:' .. job.priority, job.member)
  if redis.call('ZREM', P .. 'due', 'retry:' .. job.member) == 1 then
    redis.call('HINCRBY', P .. 'wfq:0', 'retrying', -1)
  end
  redis.call('HDEL', P .. 'job:' .. job.member, 'owner', 'entry')
end

-- Writes the end into the hash and lets hash and stream expire. The terminal entry is written before.
local function conclude(P, job, now, reason, n, failure)
  detach(P, job)
  local status = TERMINAL[reason] and reason or 'done'
  local key = P .. 'job:' .. job.member
  account(P, job, status)
  redis.call('HSET', key, 'status', status, 'reason', reason, 'n', n, 'finished', now)
  if failure then
    redis.call('HSET', key, 'error', failure)
  end
  redis.call('HDEL', key, 'payload')
  redis.call('PEXPIRE', key, job.ttl + DAY_MS)
  redis.call('PEXPIRE', P .. 'out:' .. job.member, job.ttl)
  redis.call('ZREM', P .. 'due', 'deadline:' .. job.member)
  -- The indexes forget the job after its hash is gone, one second later to be sure.
  redis.call('ZADD', P .. 'ended', now + job.ttl + DAY_MS + 1000, job.member .. ':' .. job.tags)
  note_end(P, job.tenant, now)
  event(P, 'finish', job, status, job.owner)
  if job.batch ~= '' then
    leave_batch(P, job.tenant, job.batch, job.id, status, now)
  end
end

-- Writes the terminal entry for an owner that cannot. A stream that is not ours, or sealed by others, keeps
-- what it has; the hash tells the end either way.
local function write_terminal(P, member, reason, n, failure)
  redis.pcall('XADD', P .. 'out:' .. member, SEAL_ID, 'f', cmsgpack.pack({
    version = WIRE_VERSION, reason = reason, num_tokens = n, text = '',
    usage = { completion_tokens = n }, error = failure,
  }))
end

-- Corrects what a job was charged when it was claimed: tokens that it did not make cost nothing.
local function settle(P, job, n)
  if job.charged and job.prompt_cost then
    charge(P, job.priority, job.tenant, job.prompt_cost + n - job.charged)
    redis.call('HSET', P .. 'job:' .. job.member, 'charged', job.prompt_cost + n)
  end
end

-- Ends a job from outside its owner: Redis refuses the owner's tokens from here on.
local function seal(P, job, now, reason, failure)
  local n = num_tokens(P, job) or 0
  settle(P, job, n)
  write_terminal(P, job.member, reason, n, failure)
  conclude(P, job, now, reason, n, failure and cmsgpack.pack(failure))
end

-- Ends what has the name of a job and not the fields of one.
local function write_off(P, member, now)
  local failure = { code = 'RecordInvalid', message = 'the job\'s hash is broken' }
  write_terminal(P, member, 'failed', 0, failure)
  redis.pcall('HSET', P .. 'job:' .. member, 'status', 'failed', 'reason', 'failed', 'finished', now)
  redis.call('PEXPIRE', P .. 'job:' .. member, DAY_MS)
  redis.call('PEXPIRE', P .. 'out:' .. member, DAY_MS)
  local tenant, id = split(member)
  local batch = redis.pcall('HGET', P .. 'job:' .. member, 'batch')
  if tenant and type(batch) == 'string' then
    leave_batch(P, tenant, batch, id, 'failed', now)
  end
end

-- Ends a job as failed and keeps its input among the dead letters.
local function bury(P, job, now, failure)
  local payload = redis.pcall('HGET', P .. 'job:' .. job.member, 'payload')
  if type(payload) ~= 'string' then
    payload = ''
  end
  dead_letter(P, job.tenant, job.id, failure.code or '', job.attempts, payload, cmsgpack.pack(failure), job)
  seal(P, job, now, 'failed', failure)
end

-- Puts a job that ran into line again, before all that never ran.
local function requeue(P, job, kind)
  detach(P, job)
  account(P, job, 'queued')
  redis.call('HSET', P .. 'job:' .. job.member, 'status', 'queued', 'attempts', job.attempts,
    'suspect', job.suspect and '1' or '0')
  redis.call('ZADD', P .. 'again:' .. job.priority, job.submitted, job.member)
  event(P, kind, job, 'queued', job.owner)
end

-- Tokens since the claim clear a job of every suspicion.
local function clear_by_progress(P, job)
  if (num_tokens(P, job) or 0) > job.claim_n then
    job.attempts, job.suspect = 0, false
    redis.call('HDEL', P .. 'job:' .. job.member, 'unnamed')
    return true
  end
  return false
end
