-- What clients call: submit, cancel, confirm, list.

-- Which cap a job of so many bytes would break, and when there may be room; nil where there is room.
local function cap_reached(P, tenant, bytes)
  local caps = send('HMGET', P .. 'tenants', tenant .. ':jobs', tenant .. ':bytes')
  local max_jobs, max_bytes = amount(caps[1]), amount(caps[2])
  if max_jobs <= 0 and max_bytes <= 0 then
    return nil
  end
  local used = send('HMGET', P .. 'usage', tenant .. ':queued', tenant .. ':bytes')
  if max_jobs > 0 and amount(used[1]) + 1 > max_jobs then
    return 'jobs', retry_ms(P, tenant)
  end
  local excess = amount(used[2]) + bytes - max_bytes
  if max_bytes > 0 and excess > 0 then
    return 'bytes', retry_ms(P, tenant, excess)
  end
  if not used[1] then
    note_begin(P, tenant, now_ms())
  end
  return nil
end

-- Puts a job into the lists of its tenant. Tags are joined by colons.
local function index_job(P, tenant, id, tags, now)
  send('ZADD', P .. 'jobs:' .. tenant, now, id)
  for tag in string.gmatch(tags, '[^:]+') do
    send('ZADD', P .. 'tag:' .. tenant .. ':' .. tag, now, id)
  end
end

-- Whether what `submit` is given can be a job. Our clients see to that; a job of another that broke it would
-- stand in everybody's way.
local function is_sound(argv, cost)
  for i = 11, #argv do
    if not is_name(argv[i]) then
      return false
    end
  end
  return is_name(argv[1]) and is_name(argv[2]) and whole(argv[5], 1, MAX_GRAIN) and whole(cost, 0)
    and whole(argv[7], 0, #CLASSES - 1) and (argv[8] == '' or whole(argv[8], -1e13)) and whole(argv[9], 1)
    and (argv[10] == '' or is_name(argv[10]))
end

-- ARGV: tenant, id, digest, payload, grain, "<cost>:<share of the prompt>",
-- priority, deadline_ms or '', ttl_ms, batch or '', tags...
local function submit(keys, argv)
  local P, tenant, id, digest, payload = keys[1], argv[1], argv[2], argv[3], argv[4]
  local cost, prompt_cost = string.match(argv[6], '^(%d+):(%d+)$')
  if not is_sound(argv, cost) then
    return { 'INVALID' }
  end
  local priority, deadline_ms = argv[7], tonumber(argv[8])
  local member = tenant .. ':' .. id
  local key = P .. 'job:' .. member
  -- Not `send`: whoever submits is told what stands in the place of the job, which is nobody else's.
  local known = redis.call('HMGET', key, 'digest', 'status')
  if known[1] then
    return known[1] == digest and { 'EXISTS', known[2] } or { 'CONFLICT' }
  end
  if deadline_ms and deadline_ms <= 0 then
    return { 'DEADLINE' }
  end
  local cap, after_ms = cap_reached(P, tenant, #payload)
  if cap then
    return { 'FULL', cap, after_ms }
  end
  local now = now_ms()
  local job = { tenant = tenant, id = id, member = member, bytes = #payload }
  local tags = table.concat(argv, ':', 11)
  -- A stream without a hash is of a former life; its length would be taken for tokens of this one.
  redis.call('DEL', key, P .. 'out:' .. member)
  local entry = append(P .. 'in:' .. priority .. ':' .. tenant, '*', 'job', id, 'cost', cost)
  send('HSET', key, 'status', 'queued', 'digest', digest, 'payload', payload, 'grain', argv[5],
    'cost', cost, 'prompt_cost', prompt_cost, 'entry', entry, 'mk', 0, 'attempts', 0, 'claims', 0, 'suspect', '0',
    'priority', priority, 'submitted', now, 'ttl', argv[9], 'bytes', #payload, 'tags', tags)
  if deadline_ms then
    send('HSET', key, 'deadline', now + deadline_ms)
    send('ZADD', P .. 'due', now + deadline_ms, 'deadline:' .. member)
  end
  enter(P, priority, tenant)
  account(P, job, 'queued')
  index_job(P, tenant, id, tags, now)
  if argv[10] ~= '' then
    send('HSET', key, 'batch', argv[10])
    join_batch(P, tenant, argv[10], id, now)
  end
  event(P, 'submit', job, 'queued')
  return { 'OK', 'queued' }
end

-- ARGV: tenant, id
local function cancel(keys, argv)
  local P = keys[1]
  local job, problem = load_job(P, argv[1] .. ':' .. argv[2])
  if not job then
    return { problem == 'missing' and 'MISSING' or 'BROKEN' }
  end
  if not TERMINAL[job.status] then
    seal(P, job, now_ms(), 'cancelled')
  end
  return { 'OK', job.status }
end

-- ARGV: tenant, id
local function confirm(keys, argv)
  local key = keys[1] .. 'job:' .. argv[1] .. ':' .. argv[2]
  if redis.call('EXISTS', key) == 0 then
    return { 'MISSING' }
  end
  send('HSET', key, 'confirmed', now_ms())
  return { 'OK' }
end

-- ARGV: tenant, tag or '', limit. Newest first.
local function list_jobs(keys, argv)
  local P, tenant, tag = keys[1], argv[1], argv[2]
  local index = P .. 'jobs:' .. tenant
  if tag ~= '' then
    index = P .. 'tag:' .. tenant .. ':' .. tag
  end
  local rows = {}
  for _, id in ipairs(peek('ZREVRANGE', index, 0, argv[3] - 1) or {}) do
    local v = peek('HMGET', P .. 'job:' .. tenant .. ':' .. id, 'status', 'priority', 'submitted', 'finished',
      'n', 'reason', 'tags')
    if v and v[1] then
      table.insert(rows, { id, v[1], v[2], v[3], v[4] or '', v[5] or '', v[6] or '', v[7] or '' })
    end
  end
  return rows
end

redis.register_function('ts1_submit', submit)
redis.register_function { function_name = 'ts1_cancel', callback = cancel, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_confirm', callback = confirm, flags = { 'allow-oom' } }
redis.register_function { function_name = 'ts1_list', callback = list_jobs, flags = { 'no-writes' } }
