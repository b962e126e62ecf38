"""Checks against bytes that others wrote into our keys."""

from __future__ import annotations

from .mutation import Mutation

_TYPE = "test_a_key_of_another_type_stops_nobody[valkey-{}]"
_FIELD = "test_a_counter_or_place_that_is_none[valkey-{}]"
_SETTING = "test_a_setting_that_is_no_number_stops_nobody[ts:{0}:%s]"
_PLACE = "test_places_in_line_that_are_no_numbers_start_anew"
_CAP = "test_caps_that_are_no_numbers_hold_nobody_up[valkey-{}]"
_PACE = "test_a_pace_that_is_none[valkey-{}]"

_KEYS = (
    Mutation(
        check="the key is of its type",
        function="send",
        remove="  if is_wrong_type(reply) then\n    set_aside(key)\n  end\n",
        test=_TYPE.format("again:1-claim"),
    ),
    Mutation(
        check="the key is of its type",
        function="peek",
        remove="  if is_wrong_type(reply) then\n    return nil\n  end\n",
        test="test_what_only_reads_finds_nothing_in_a_key_of_another_type[valkey-leases]",
    ),
    Mutation(
        check="nothing else that is refused is an empty key",
        function="peek",
        remove="  if is_wrong_type(reply) then\n    return nil",
        put="  if is_error(reply) then\n    return nil",
        test="test_a_hostile_tenant_is_refused[valkey-FCALL ts1_list 1 ts:{0}: acme '' 10]",
    ),
    Mutation(
        check="a stream takes entries",
        function="append",
        remove="  local entry = redis.pcall('XADD', key, ...)",
        put="  local entry = redis.call('XADD', key, ...)",
        test="test_events_that_take_no_more_are_set_aside[valkey-submit]",
    ),
    Mutation(
        check="no other stands aside already",
        function="set_aside",
        remove="  local renamed = redis.pcall('RENAMENX', key, aside)",
        put="  local renamed = is_error(redis.pcall('RENAME', key, aside)) and { err = '' } or 1",
        test="test_the_first_key_set_aside_stays[valkey]",
    ),
    Mutation(
        check="a key that tenants may not rename is of its type",
        function="sweep",
        remove="(kind ~= shared[2] and kind ~= 'none') or ",
        test="test_sweep_sets_aside_for_those_who_may_not[valkey-tenants]",
    ),
    Mutation(
        check="a stream that tenants may not rename takes entries",
        function="sweep",
        remove=" or (last and last[1] == SEAL_ID)",
        test="test_sweep_finds_events_that_take_no_more[valkey]",
    ),
    Mutation(
        check="a tenant and an id are names",
        function="split",
        remove="'^([%w._-]+):([%w._-]+)$'",
        put="'^([^:]+):([^:]+)$'",
        test="test_a_job_of_a_tenant_that_is_no_name_is_none[valkey]",
    ),
    Mutation(
        check="a job's batch is a name",
        function="load_job",
        remove="v[18] and is_name(v[18]) and v[18] or ''",
        put="v[18] or ''",
        test="test_a_jobs_batch_that_is_no_name[valkey]",
    ),
    Mutation(
        check="a batch has a name",
        function="sweep",
        remove="    if split(name) then\n      send('ZADD', P .. 'batches'",
        put="    if true then\n      send('ZADD', P .. 'batches'",
        test="test_a_batch_that_is_none[valkey-cursor-nan]",
    ),
)

_NUMBERS = (
    Mutation(
        check="the first half of an entry's id is within its range",
        function="load_job",
        remove="#ms < 20 and ",
        test=f"test_an_entry_that_no_stream_can_have[valkey-{'9' * 20}-0]",
    ),
    Mutation(
        check="the second half of an entry's id is within its range",
        function="load_job",
        remove=" and #number < 20",
        test=f"test_an_entry_that_no_stream_can_have[valkey-0-{'9' * 20}]",
    ),
    Mutation(
        check="a counter is a number",
        function="add",
        remove="if is_error(sum) then",
        put="if false then",
        test=_FIELD.format("retrying-many"),
    ),
    Mutation(
        check="no fewer than none wait to be tried again",
        function="count_retrying",
        remove="if add('HINCRBY', P .. 'wfq:0', 'retrying', by) < 0 then",
        put="if add('HINCRBY', P .. 'wfq:0', 'retrying', by) < -9 then",
        test=_FIELD.format("retrying--1"),
    ),
    Mutation(
        check="a cursor is digits",
        function="cursor",
        remove="string.match(text, '^%d+$') or '0'",
        put="text or '0'",
        test=_FIELD.format("scanned-many"),
    ),
    Mutation(
        check="a cursor is not too long",
        function="cursor",
        remove="#text < 20 and ",
        test=_FIELD.format(f"scanned-{'9' * 30}"),
    ),
    Mutation(
        check="a virtual time is a number",
        function="sweep",
        remove="if amount(page[2][i + 1]) <= level then",
        put="if tonumber(page[2][i + 1]) <= level then",
        test=_FIELD.format("vt:x-many"),
    ),
    Mutation(
        check="a virtual time is a number",
        function="virtual_time",
        remove="math.max(amount(v[1]), amount(v[2]))",
        put="math.max(tonumber(v[1]) or 0, tonumber(v[2]) or 0)",
        test=_PLACE,
    ),
    Mutation(
        check="the class's virtual time is a number",
        function="claim",
        remove="if tonumber(start) > amount(send('HGET', wfq, 'vmin')) then",
        put="if tonumber(start) > (tonumber(send('HGET', wfq, 'vmin')) or 0) then",
        test=_PLACE,
    ),
    Mutation(
        check="the turn is a number",
        function="claim",
        remove="local turn = amount(send('HGET', P .. 'wfq:0', 'turn')) + 1",
        put="local turn = (tonumber(send('HGET', P .. 'wfq:0', 'turn')) or 0) + 1",
        test=_PLACE,
    ),
    Mutation(
        check="a weight is within bounds",
        function="charge",
        remove="(number(v[1], MIN_WEIGHT, MAX_WEIGHT) or 1)",
        put="(tonumber(v[1]) or 1)",
        test=_SETTING % "tenants-weight-nan",
    ),
    Mutation(
        check="caps are numbers",
        function="claim",
        remove="max_running, rate = amount(caps[1]), amount(caps[2])",
        put="max_running, rate = tonumber(caps[1]) or 0, tonumber(caps[2]) or 0",
        test=_SETTING % "tenants-running-nan",
    ),
    Mutation(
        check="the level of a rate is a number",
        function="claim",
        remove="(number(v[1], -MANY, MANY) or 0) + rate",
        put="(tonumber(v[1]) or 0) + rate",
        test="test_a_level_that_is_none[valkey-level--inf]",
    ),
    Mutation(
        check="the time of the level is a number",
        function="claim",
        remove="local level, since = full, number(v[2], 0, MANY)",
        put="local level, since = full, tonumber(v[2])",
        test="test_a_level_that_is_none[valkey-level_ms-inf]",
    ),
    Mutation(
        check="the count of running jobs is a number",
        function="claim",
        remove="max_running - amount(send('HGET', P .. 'usage', tenant .. ':running'))",
        put="max_running - (tonumber(send('HGET', P .. 'usage', tenant .. ':running')) or 0)",
        test=_CAP.format("running-running-inf"),
    ),
    Mutation(
        check="the count of waiting jobs is a number",
        function="submit",
        remove="amount(used[1]) + 1 > max_jobs",
        put="(tonumber(used[1]) or 0) + 1 > max_jobs",
        test=_CAP.format("jobs-queued-inf"),
    ),
    Mutation(
        check="the count of waiting bytes is a number",
        function="submit",
        remove="amount(used[2]) + bytes - max_bytes",
        put="(tonumber(used[2]) or 0) + bytes - max_bytes",
        test=_CAP.format("bytes-bytes-inf"),
    ),
    Mutation(
        check="a pace is a number",
        function="submit",
        remove="math.max(amount(v[1]), now_ms() - last)",
        put="math.max(tonumber(v[1]), now_ms() - last)",
        test=_PACE.format("every_ms-x"),
    ),
    Mutation(
        check="the time of the last end is a number",
        function="submit",
        remove="local last = number(v[2], 0, MANY)\n  if not last then",
        put="local last = v[2] and tonumber(v[2])\n  if v[2] == nil then",
        test=_PACE.format("last-x"),
    ),
    Mutation(
        check="a pace is a number",
        function="finish",
        remove="local every_ms, last = number(v[1], 0, MANY), number(v[2], 0, MANY)",
        put="local every_ms, last = tonumber(v[1]), number(v[2], 0, MANY)",
        test=_PACE.format("every_ms-inf"),
    ),
    Mutation(
        check="the time of the last end is a number",
        function="finish",
        remove="local every_ms, last = number(v[1], 0, MANY), number(v[2], 0, MANY)",
        put="local every_ms, last = number(v[1], 0, MANY), tonumber(v[2])",
        test=_PACE.format("last--inf"),
    ),
    Mutation(
        check="a count of deaths is a number",
        function="reap",
        remove="if add('HINCRBY', P .. 'job:' .. job.member, 'unnamed', 1) > MAX_UNNAMED",
        put="if send('HINCRBY', P .. 'job:' .. job.member, 'unnamed', 1) > MAX_UNNAMED",
        test="test_a_count_of_deaths_that_is_none[valkey-many]",
    ),
    Mutation(
        check="a batch's count is a number",
        function="leave_batch",
        remove="    add('HINCRBY', P .. 'batch:' .. name, status, 1)",
        put="    send('HINCRBY', P .. 'batch:' .. name, status, 1)",
        test="test_a_batch_that_is_none[valkey-failed-many]",
    ),
    Mutation(
        check="a batch's counts are numbers",
        function="end_batch",
        remove="'expired', whole(v[5], 0) or 0,",
        put="'expired', v[5] or 0,",
        test="test_a_batchs_counts_that_are_none[valkey-many]",
    ),
)

GUARD_CHECKS: tuple[Mutation, ...] = (*_KEYS, *_NUMBERS)
