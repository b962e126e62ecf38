-- What a session calls for itself: hello, beat, step, finish, fail, release, note, bye.

local OK, CAS, GONE, INVALID = 1, -1, -2, -3
local MAX_ATTEMPTS = 3
local BACKOFF_MS, MAX_BACKOFF_MS = 1000, 60000
local FENCED = { 'FENCED' }

-- What a session tells about itself: names and values, from one of the arguments on.
local function take_info(key, argv, first)
  for i = first, #argv, 2 do
    send('HSET', key, 'info:' .. argv[i], argv[i + 1])
  end
end

-- ARGV: session, nonce, replica, slots, lease_ms, info (name, value)...
local function hello(keys, argv)
  local P, session, nonce = keys[1], argv[1], argv[2]
  local key = P .. 'session:' .. session
  local known = send('HGET', key, 'nonce')
  if known and known ~= nonce then
    return FENCED
  end
  local now = now_ms()
  send('HSET', key, 'nonce', nonce, 'replica', argv[3], 'slots', argv[4], 'lease_ms', argv[5],
    'draining', '0', 'alone', '', 'since', now)
  take_info(key, argv, 6)
  send('ZADD', P .. 'leases', now + argv[5], session)
  event(P, 'hello', { tenant = '', id = '' }, '', session)
  return { 'OK' }
end

-- The mark "<mk>:<grain>" under which a session owns a job. One that others wrote over is taken from the hash
-- again; nil if that cannot tell either.
local function mark_of(P, session, member, mark)
  local mk, grain = string.match(mark, '^(%d+):(%d+)$')
  if whole(mk, 1) and whole(grain, 1, MAX_GRAIN) then
    return mark
  end
  local job = load_job(P, member)
  if not job or job.owner ~= session then
    return nil
  end
  mark = job.mk .. ':' .. job.grain
  send('HSET', P .. 'own:' .. session, member, mark)
  return mark
end

-- The members that a session owns, each followed by "<mk>:<grain>" if asked for. What no hash names as the
-- session's has vanished or was written anew, and is let go of: it would hold a slot for ever.
local function held_by(P, session, with_marks)
  local own, held = P .. 'own:' .. session, {}
  local found = send('HGETALL', own)
  for i = 1, #found, 2 do
    local member, tenant = found[i], split(found[i])
    local mark = not with_marks or mark_of(P, session, member, found[i + 1])
    if redis.pcall('HGET', P .. 'job:' .. member, 'owner') ~= session then
      send('HDEL', own, member)
      if tenant then
        count(P, tenant, 'running', -1)
      end
    elseif mark then
      held[#held + 1] = member
      held[#held + 1] = with_marks and mark or nil
    end
  end
  return held
end

-- ARGV: session, nonce, draining 0|1, member stepped alone or '', info (name, value)...
local function beat(keys, argv)
  local P, session = keys[1], argv[1]
  local lease_ms = check_nonce(P, session, argv[2])
  if not lease_ms then
    return FENCED
  end
  send('ZADD', P .. 'leases', now_ms() + lease_ms, session)
  local key = P .. 'session:' .. session
  send('HSET', key, 'draining', argv[3], 'alone', argv[4])
  take_info(key, argv, 5)
  return { 'OK', held_by(P, session, true) }
end

-- What the session owns of the members at argv[first], argv[first + stride], ...: "<mk>:<grain>", false if not.
local function owned(P, session, argv, first, stride)
  local found = {}
  for at = first, #argv, stride do
    local mark = send('HGET', P .. 'own:' .. session, argv[at])
    found[#found + 1] = mark and mark_of(P, session, argv[at], mark) or false
  end
  return found
end

-- Why a row was refused: by then the job may have ended or be another's, which needs no reading to know.
local function refusal(P, session, member)
  return send('HEXISTS', P .. 'own:' .. session, member) == 1 and CAS or GONE
end

-- ARGV: session, nonce, then per job: member, expected length, entry. The length reads "<length>" in a stream
-- of one marker and a grain of one, where it is the next index, else "<length>:<markers>:<grain>".
--
-- The hot path: one look at the session, then XLEN and XADD per job, each of which is taken or refused by
-- itself. Every claim and every end makes a stream longer, so the length alone tells who may write. Returns
-- row and code of those refused.
local function step(keys, argv)
  local P, session, pcall = keys[1], argv[1], redis.pcall
  local lease_ms = check_nonce(P, session, argv[2])
  if not lease_ms then
    return FENCED
  end
  send('ZADD', P .. 'leases', now_ms() + lease_ms, session)
  local out, refused = P .. 'out:', {}
  for at = 3, #argv, 3 do
    local key, length, index = out .. argv[at], argv[at + 1], argv[at + 1]
    local expected = tonumber(length)
    if not expected then
      local mk, grain
      length, mk, grain = string.match(length, '^(%d+):(%d+):(%d+)$')
      expected = tonumber(length)
      index = (expected - mk + 1) * grain
    end
    local code
    if pcall('XLEN', key) ~= expected then
      code = refusal(P, session, argv[at])
    elseif type(pcall('XADD', key, index .. '-0', 't', argv[at + 2])) ~= 'string' then
      code = GONE
    end
    if code then
      refused[#refused + 1] = at / 3
      refused[#refused + 1] = code
    end
  end
  return refused
end

-- Whether a last entry and the number of tokens fit what the stream holds.
local function adds_up(base, grain, last_entry, n)
  if last_entry == '' then
    return n == base
  end
  return n > base and n <= base + grain
end

-- ARGV: session, nonce, then per job: member, expected length, last entry or '', terminal, reason, n, cost
local function finish(keys, argv)
  local P, session = keys[1], argv[1]
  if not check_nonce(P, session, argv[2]) then
    return FENCED
  end
  local codes, held = {}, owned(P, session, argv, 3, 7)
  for row = 1, #held do
    local at = row * 7 - 4
    if not held[row] then
      codes[row] = GONE
    elseif redis.pcall('XLEN', P .. 'out:' .. argv[at]) ~= tonumber(argv[at + 1]) then
      codes[row] = CAS
    else
      local mk, grain = string.match(held[row], '^(%d+):(%d+)$')
      local base = (argv[at + 1] - mk) * grain
      if not adds_up(base, tonumber(grain), argv[at + 2], tonumber(argv[at + 5])) then
        codes[row] = INVALID
      end
    end
  end
  local now = now_ms()
  for row = 1, #held do
    local at = row * 7 - 4
    local job = not codes[row] and load_job(P, argv[at])
    if job then
      local out, reason, n, cost = P .. 'out:' .. job.member, argv[at + 4], argv[at + 5], tonumber(argv[at + 6])
      if argv[at + 2] ~= '' then
        redis.pcall('XADD', out, n .. '-0', 't', argv[at + 2])
      end
      redis.pcall('XADD', out, SEAL_ID, 'f', argv[at + 3])
      charge(P, job.priority, job.tenant, cost - (job.charged or job.cost))
      local failure
      if reason == 'failed' then
        local fine, terminal = pcall(cmsgpack.unpack, argv[at + 3])
        failure = fine and type(terminal) == 'table' and terminal.error and cmsgpack.pack(terminal.error)
      end
      conclude(P, job, now, reason, n, failure)
      codes[row] = OK
    elseif not codes[row] then
      codes[row] = GONE
    end
  end
  return codes
end

-- ARGV: session, nonce, member, failure (msgpack), retry 0|1
local function fail(keys, argv)
  local P, session = keys[1], argv[1]
  if not check_nonce(P, session, argv[2]) then
    return FENCED
  end
  local job = load_job(P, argv[3])
  if not job or job.owner ~= session then
    return { GONE }
  end
  local fine, failure = pcall(cmsgpack.unpack, argv[4])
  if not fine or type(failure) ~= 'table' then
    failure = { code = 'JobFailed', message = '', data = {} }
  end
  local now = now_ms()
  clear_by_progress(P, job)
  job.attempts = job.attempts + 1
  if argv[5] ~= '1' or job.attempts >= MAX_ATTEMPTS then
    send('HSET', P .. 'job:' .. job.member, 'attempts', job.attempts)
    bury(P, job, now, failure)
    return { OK }
  end
  local backoff = math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ^ (job.attempts - 1))
  -- Half of the wait is spread, by the clock's microseconds, so that jobs that failed together part.
  backoff = math.floor(backoff / 2 + backoff / 2 * (tonumber(redis.call('TIME')[2]) % 1000) / 1000)
  detach(P, job)
  account(P, job, 'waiting')
  send('HSET', P .. 'job:' .. job.member, 'status', 'waiting', 'attempts', job.attempts, 'error', argv[4])
  send('ZADD', P .. 'due', now + backoff, 'retry:' .. job.member)
  count_retrying(P, 1)
  event(P, 'retry', job, 'waiting', session)
  return { OK }
end

-- Puts every named job that the session owns into line again; returns how many.
local function give_back(P, session, members, kind)
  local released = 0
  for _, member in ipairs(members) do
    local job = load_job(P, member)
    if job and job.owner == session then
      clear_by_progress(P, job)
      requeue(P, job, kind)
      released = released + 1
    end
  end
  return released
end

-- ARGV: session, nonce, member...
local function release(keys, argv)
  if not check_nonce(keys[1], argv[1], argv[2]) then
    return FENCED
  end
  local members = {}
  for i = 3, #argv do
    members[#members + 1] = argv[i]
  end
  return { 'OK', give_back(keys[1], argv[1], members, 'release') }
end

-- ARGV: session, nonce, member, note
local function note(keys, argv)
  local P = keys[1]
  if not check_nonce(P, argv[1], argv[2]) then
    return FENCED
  end
  local key = P .. 'job:' .. argv[3]
  if send('HGET', key, 'owner') ~= argv[1] then
    return { GONE }
  end
  send('HSET', key, 'note', argv[4])
  return { OK }
end

local function end_session(P, session)
  redis.call('DEL', P .. 'session:' .. session, P .. 'own:' .. session)
  send('ZREM', P .. 'leases', session)
end

-- ARGV: session, nonce
local function bye(keys, argv)
  local P, session = keys[1], argv[1]
  if not check_nonce(P, session, argv[2]) then
    return FENCED
  end
  give_back(P, session, held_by(P, session), 'release')
  end_session(P, session)
  event(P, 'bye', { tenant = '', id = '' }, '', session)
  return { 'OK' }
end

redis.register_function { function_name = 'ts1_hello', callback = hello, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_beat', callback = beat, flags = { 'allow-oom' } }
redis.register_function('ts1_step', step)
redis.register_function { function_name = 'ts1_finish', callback = finish, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_fail', callback = fail, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_release', callback = release, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_note', callback = note, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_bye', callback = bye, flags = { 'allow-oom' } }
