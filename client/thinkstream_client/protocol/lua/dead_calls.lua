-- What operators do about dead letters: try the job again, or drop the letter.

local function find_letter(P, entry)
  local found = redis.pcall('XRANGE', P .. 'dead', entry, entry)
  if not found[1] then
    return nil
  end
  local letter, fields = {}, found[1][2]
  for i = 1, #fields, 2 do
    letter[fields[i]] = fields[i + 1]
  end
  return letter
end

-- Whether a letter holds all that makes its job one again; others may have written it.
local function is_job(letter)
  for tag in string.gmatch(letter.tags or '', '[^:]+') do
    if not is_name(tag) then
      return false
    end
  end
  return is_name(letter.tenant or '') and is_name(letter.job or '') and (letter.digest or '') ~= ''
    and (letter.payload or '') ~= '' and whole(letter.grain, 1, MAX_GRAIN) and whole(letter.cost, 0)
    and ((letter.prompt_cost or '') == '' or whole(letter.prompt_cost, 0))
    and whole(letter.priority, 0, #CLASSES - 1) and whole(letter.ttl, 1)
end

-- Whether the entries of a stream, without its terminal entry, are those that its job wrote.
local function is_result(entries, mk, grain)
  for _, entry in ipairs(entries) do
    if #entry[2] ~= 2 then
      return false
    end
  end
  local last = entries[#entries]
  return last and mk >= 1 and string.match(last[1], '^(%d+)-') == string.format('%.0f', (#entries - mk) * grain)
end

-- Writes the stream anew without its terminal entry: Redis takes nothing behind that id, removed or not. A
-- stream that is gone or does not add up begins empty. Returns the number of its markers.
local function unseal(P, out, mk, grain)
  local entries = redis.pcall('XRANGE', out, '-', '+')
  redis.call('DEL', out)
  if #entries > 0 and entries[#entries][1] == SEAL_ID then
    entries[#entries] = nil
  end
  if not is_result(entries, mk, grain) then
    return 0
  end
  for _, entry in ipairs(entries) do
    send('XADD', out, entry[1], unpack(entry[2]))
  end
  return mk
end

-- ARGV: the letter's entry. Its job is in line again: same id, attempts from zero, behind its tokens. It has
-- no deadline any more and stays out of its batch, which has counted it.
local function dead_retry(keys, argv)
  local P, entry, now = keys[1], argv[1], now_ms()
  local letter = find_letter(P, entry)
  if not letter then
    return { 'MISSING' }
  end
  if not is_job(letter) then
    return { 'NOTHING' }
  end
  local member, tags = letter.tenant .. ':' .. letter.job, letter.tags or ''
  local key = P .. 'job:' .. member
  local known = send('HMGET', key, 'status', 'mk', 'claims', 'charged', 'digest', 'grain')
  if known[1] and known[1] ~= 'failed' then
    return { 'OTHER', letter.job, known[1] }
  elseif known[1] and (known[5] ~= letter.digest or known[6] ~= letter.grain) then
    return { 'NOTHING' } -- of an older job of this name, or forged: the result would not be its own
  end
  local mk = unseal(P, P .. 'out:' .. member, tonumber(known[2]) or 0, tonumber(letter.grain))
  redis.call('DEL', key)
  send('HSET', key, 'digest', letter.digest, 'payload', letter.payload, 'grain', letter.grain,
    'cost', letter.cost, 'prompt_cost', letter.prompt_cost or '', 'mk', mk, 'claims', whole(known[3], 0) or 0,
    'priority', letter.priority, 'submitted', now, 'ttl', letter.ttl, 'bytes', #letter.payload, 'tags', tags,
    'charged', whole(known[4], 0) or 0)
  send('ZREM', P .. 'ended', member .. ':' .. tags)
  index_job(P, letter.tenant, letter.job, tags, now)
  requeue(P, { tenant = letter.tenant, id = letter.job, member = member, priority = letter.priority,
    submitted = now, bytes = #letter.payload, attempts = 0, suspect = false, status = 'failed' }, 'revive')
  send('XDEL', P .. 'dead', entry)
  return { 'OK', letter.tenant, letter.job }
end

-- ARGV: the letter's entry
local function dead_drop(keys, argv)
  if not find_letter(keys[1], argv[1]) then
    return { 'MISSING' }
  end
  send('XDEL', keys[1] .. 'dead', argv[1])
  return { 'OK' }
end

redis.register_function('ts1_dead_retry', dead_retry)
redis.register_function { function_name = 'ts1_dead_drop', callback = dead_drop, flags = { 'allow-oom' } }
