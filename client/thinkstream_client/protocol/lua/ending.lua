-- How a job leaves an owner: back into line, later once more, or for good.

-- Takes the job out of every place where it waits or is owned.
local function detach(P, job)
  if job.entry then
    dequeue(P, job.priority, job.tenant, job.entry)
  end
  if job.owner then
    send('HDEL', P .. 'own:' .. job.owner, job.member)
  end
  send('ZREM', P .. 'running', job.member)
  send('ZREM', P .. 'again:' .. job.priority, job.member)
  if send('ZREM', P .. 'due', 'retry:' .. job.member) == 1 then
    count_retrying(P, -1)
  end
  send('HDEL', P .. 'job:' .. job.member, 'owner', 'entry')
end

-- Writes the end into the hash and lets hash and stream expire. The terminal entry is written before.
local function conclude(P, job, now, reason, n, failure)
  detach(P, job)
  local status = TERMINAL[reason] and reason or 'done'
  local key = P .. 'job:' .. job.member
  account(P, job, status)
  send('HSET', key, 'status', status, 'reason', reason, 'n', n, 'finished', now)
  if failure then
    send('HSET', key, 'error', failure)
  end
  send('HDEL', key, 'payload')
  redis.call('PEXPIRE', key, job.ttl + DAY_MS)
  redis.call('PEXPIRE', P .. 'out:' .. job.member, job.ttl)
  send('ZREM', P .. 'due', 'deadline:' .. job.member)
  -- The indexes forget the job after its hash is gone, one second later to be sure.
  send('ZADD', P .. 'ended', now + job.ttl + DAY_MS + 1000, job.member .. ':' .. job.tags)
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
    send('HSET', P .. 'job:' .. job.member, 'charged', job.prompt_cost + n)
  end
end

-- Ends a job from outside its owner: Redis refuses the owner's tokens from here on.
local function seal(P, job, now, reason, failure)
  local n = num_tokens(P, job) or 0
  settle(P, job, n)
  write_terminal(P, job.member, reason, n, failure)
  conclude(P, job, now, reason, n, failure and cmsgpack.pack(failure))
end

-- Takes a job whose hash is broken out of every place that names it, and out of the counter that it is in:
-- as its hash says, if that says it still, or as its caller found it, or by those that held it as running.
local function uproot(P, member, tenant, found, was)
  was = COUNTED_AS[found.status] or was
  local priority, entry = whole(found.priority, 0, #CLASSES - 1), found.entry
  if priority and entry and is_entry(entry) then
    dequeue(P, priority, tenant, entry)
  end
  local is_owned = found.owner and send('HDEL', P .. 'own:' .. found.owner, member) == 1
  local ran = send('ZREM', P .. 'running', member) == 1
  for _, class in ipairs(CLASSES) do
    send('ZREM', P .. 'again:' .. class, member)
  end
  if send('ZREM', P .. 'due', 'retry:' .. member) == 1 then
    count_retrying(P, -1)
  end
  send('ZREM', P .. 'due', 'deadline:' .. member)
  local was_held = is_owned or ran
  was = was or was_held and 'running'
  if was == 'running' and was_held then
    count(P, tenant, 'running', -1)
  elseif was == 'queued' then
    count(P, tenant, 'queued', -1)
    count(P, tenant, 'bytes', -(whole(found.bytes, 0) or 0))
  end
end

-- Tokens of a stream whose job cannot tell: ids of entries begin with the number of tokens up to there.
local function tokens_in(P, member)
  local last = redis.pcall('XREVRANGE', P .. 'out:' .. member, '+', '-', 'COUNT', 1)[1]
  return last and whole(string.match(last[1], '^(%d+)-'), 0) or 0
end

-- Ends what has the name of a job and not the fields of one, so that nobody waits for it.
local function write_off(P, member, now, was)
  local tenant, id = split(member)
  local key = P .. 'job:' .. member
  local v = redis.pcall('HMGET', key, 'status', 'owner', 'batch', 'bytes', 'tags', 'entry', 'priority')
  if not tenant or TERMINAL[v[1]] then
    return
  end
  uproot(P, member, tenant, { status = v[1], owner = v[2], bytes = v[4], entry = v[6], priority = v[7] }, was)
  local n, failure = tokens_in(P, member), { code = 'RecordInvalid', message = 'the job\'s hash is broken' }
  write_terminal(P, member, 'failed', n, failure)
  redis.pcall('HSET', key, 'status', 'failed', 'reason', 'failed', 'n', n, 'finished', now,
    'error', cmsgpack.pack(failure))
  redis.pcall('HDEL', key, 'payload', 'owner', 'entry')
  redis.call('PEXPIRE', key, DAY_MS)
  redis.call('PEXPIRE', P .. 'out:' .. member, DAY_MS)
  send('ZADD', P .. 'ended', now + DAY_MS + 1000, member .. ':' .. (v[5] or ''))
  event(P, 'finish', { tenant = tenant, id = id }, 'failed', v[2])
  if v[3] and is_name(v[3]) then
    leave_batch(P, tenant, v[3], id, 'failed', now)
  end
end

-- Writes a job off whose hash is broken, and keeps its input among the dead letters.
local function condemn(P, member, now, was)
  local tenant, id = split(member)
  local v = redis.pcall('HMGET', P .. 'job:' .. member, 'status', 'payload')
  if tenant and not TERMINAL[v[1]] then
    dead_letter(P, tenant, id, 'broken', 0, v[2])
    write_off(P, member, now, was)
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
  send('HSET', P .. 'job:' .. job.member, 'status', 'queued', 'attempts', job.attempts,
    'suspect', job.suspect and '1' or '0')
  send('ZADD', P .. 'again:' .. job.priority, job.submitted, job.member)
  event(P, kind, job, 'queued', job.owner)
end

-- Tokens since the claim clear a job of every suspicion.
local function clear_by_progress(P, job)
  if (num_tokens(P, job) or 0) > job.claim_n then
    job.attempts, job.suspect = 0, false
    send('HDEL', P .. 'job:' .. job.member, 'unnamed')
    return true
  end
  return false
end
