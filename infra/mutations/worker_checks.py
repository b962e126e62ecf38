"""Checks of what a session calls for its jobs."""

from __future__ import annotations

from .mutation import Mutation

_NONCE = "test_only_who_knows_the_nonce_is_the_session[valkey-{}]"

WORKER_CHECKS = (
    Mutation(
        check="nonce",
        function="hello",
        remove="if known and known ~= nonce then",
        put="if false then",
        test=_NONCE.format("hello"),
    ),
    Mutation(
        check="nonce",
        function="beat",
        remove="""  local lease_ms = check_nonce(P, session, argv[2])
  if not lease_ms then
    return FENCED
  end
  send('ZADD', P .. 'leases', now_ms() + lease_ms, session)
  local key""",
        put="  local lease_ms = 5000\n  local key",
        test=_NONCE.format("beat"),
    ),
    Mutation(
        check="nonce",
        function="step",
        remove="""  local lease_ms = check_nonce(P, session, argv[2])
  if not lease_ms then
    return FENCED
  end
  send('ZADD', P .. 'leases', now_ms() + lease_ms, session)
  local out""",
        put="  local out",
        test="test_a_zombie_writes_between_reap_and_the_next_claim[valkey]",
    ),
    Mutation(
        check="the leases are a sorted set",
        function="step",
        remove="  send('ZADD', P .. 'leases', now_ms() + lease_ms, session)\n  local out",
        put="  redis.call('ZADD', P .. 'leases', now_ms() + lease_ms, session)\n  local out",
        test="test_a_session_works_on_beside_a_key_of_another_type[valkey-leases-step]",
    ),
    Mutation(
        check="XLEN",
        function="step",
        remove="if pcall('XLEN', key) ~= expected then",
        put="if false then",
        test="test_lost_reply_and_gap_are_refused[valkey]",
    ),
    Mutation(
        check="Redis took the entry",
        function="step",
        remove="elseif type(pcall('XADD', key, index .. '-0', 't', argv[at + 2])) ~= 'string' then",
        put="elseif pcall('XADD', key, index .. '-0', 't', argv[at + 2]) == nil then",
        test="test_a_foreign_entry_of_a_high_id_stops_its_own_row[valkey]",
    ),
    Mutation(
        check="whether a refused row is still owned",
        function="step",
        remove="return send('HEXISTS', P .. 'own:' .. session, member) == 1 and CAS or GONE",
        put="return CAS",
        test="test_cancel_seals_at_once[valkey]",
    ),
    Mutation(
        check="nonce",
        function="finish",
        remove="""  if not check_nonce(P, session, argv[2]) then
    return FENCED
  end
  local codes""",
        put="  local codes",
        test=_NONCE.format("finish"),
    ),
    Mutation(
        check="ownership",
        function="finish",
        remove="    if not held[row] then\n      codes[row] = GONE\n    elseif",
        put="    held[row] = held[row] or '1:1'\n    if",
        test="test_an_end_of_a_job_that_was_given_back[valkey]",
    ),
    Mutation(
        check="XLEN",
        function="finish",
        remove="redis.pcall('XLEN', P .. 'out:' .. argv[at]) ~= tonumber(argv[at + 1])",
        put="false",
        test="test_an_end_whose_reply_was_lost[valkey]",
    ),
    Mutation(
        check="the tokens add up",
        function="finish",
        remove="if not adds_up(base, tonumber(grain), argv[at + 2], tonumber(argv[at + 5])) then",
        put="if false then",
        test="test_finish_must_add_up[valkey]",
    ),
    Mutation(
        check="the job is there",
        function="finish",
        remove="elseif not codes[row] then\n      codes[row] = GONE",
        put="",
        test="test_an_end_of_a_job_whose_hash_is_gone[valkey-finish]",
    ),
    Mutation(
        check="nonce",
        function="fail",
        remove="""  if not check_nonce(P, session, argv[2]) then
    return FENCED
  end
  local job = load_job(P, argv[3])""",
        put="  local job = load_job(P, argv[3])",
        test=_NONCE.format("fail"),
    ),
    Mutation(
        check="the job is there",
        function="fail",
        remove="if not job or job.owner ~= session then\n    return { GONE }",
        put="if job.owner ~= session then\n    return { GONE }",
        test="test_an_end_of_a_job_whose_hash_is_gone[valkey-fail]",
    ),
    Mutation(
        check="ownership",
        function="fail",
        remove="if not job or job.owner ~= session then\n    return { GONE }",
        put="if not job then\n    return { GONE }",
        test="test_a_session_does_nothing_to_another_ones_job[valkey-fail]",
    ),
    Mutation(
        check="the failure is a record",
        function="fail",
        remove="if not fine or type(failure) ~= 'table' then",
        put="if false then",
        test="test_a_failure_that_is_no_record[valkey]",
    ),
    Mutation(
        check="attempts are counted",
        function="fail",
        remove="if argv[5] ~= '1' or job.attempts >= MAX_ATTEMPTS then",
        put="if argv[5] ~= '1' then",
        test="test_failing_and_trying_again[valkey]",
    ),
    Mutation(
        check="nonce",
        function="release",
        remove="  if not check_nonce(keys[1], argv[1], argv[2]) then\n    return FENCED\n  end\n",
        test=_NONCE.format("release"),
    ),
    Mutation(
        check="ownership",
        function="release",
        remove="if job and job.owner == session then",
        put="if job then",
        test="test_a_session_does_nothing_to_another_ones_job[valkey-release]",
    ),
    Mutation(
        check="nonce",
        function="note",
        remove="  if not check_nonce(P, argv[1], argv[2]) then\n    return FENCED\n  end\n",
        test=_NONCE.format("note"),
    ),
    Mutation(
        check="ownership",
        function="note",
        remove="if send('HGET', key, 'owner') ~= argv[1] then",
        put="if false then",
        test="test_a_session_does_nothing_to_another_ones_job[valkey-note]",
    ),
    Mutation(
        check="nonce",
        function="bye",
        remove="""  if not check_nonce(P, session, argv[2]) then
    return FENCED
  end
  give_back""",
        put="  give_back",
        test=_NONCE.format("bye"),
    ),
    Mutation(
        check="progress clears suspicion",
        function="fail, release, reap",
        remove="if (num_tokens(P, job) or 0) > job.claim_n then",
        put="if false then",
        test="test_progress_resets_the_count[valkey]",
    ),
)
