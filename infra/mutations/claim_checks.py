"""Checks of the scheduler's claim."""

from __future__ import annotations

from .mutation import Mutation

CLAIM_CHECKS = (
    Mutation(
        check="the session is known",
        function="claim",
        remove="session, 'slots', 'draining')",
        put="session, 'slots', 'draining')\n  v[1] = v[1] or '9'",
        test="test_a_lease_that_is_over_takes_no_jobs[valkey]",
    ),
    Mutation(
        check="its lease holds",
        function="claim",
        remove="or not lease or lease < call.now then",
        put="then",
        test="test_a_lease_that_is_over_takes_no_jobs[valkey]",
    ),
    Mutation(
        check="draining",
        function="claim",
        remove="if v[2] == '1' then",
        put="if false then",
        test="test_slots_and_draining[valkey]",
    ),
    Mutation(
        check="slots cap",
        function="claim",
        remove="while #rows - 2 < k do",
        put="while #rows - 2 < tonumber(argv[2]) do",
        test="test_slots_and_draining[valkey]",
    ),
    Mutation(
        check="the tenant's cap of running jobs, and its rate",
        function="claim",
        remove="return call.room[tenant] > 0",
        put="return true",
        test="test_caps_of_a_tenant[valkey]",
    ),
    Mutation(
        check="the tenant's rate",
        function="claim",
        remove="if level <= 0 then",
        put="if false then",
        test="test_rate_of_a_tenant[valkey]",
    ),
    Mutation(
        check="deadline",
        function="claim",
        remove="if job.deadline > 0 and job.deadline <= call.now then",
        put="if false then",
        test="test_deadline[valkey]",
    ),
    Mutation(
        check="the job has a payload",
        function="claim",
        remove="elseif send('HEXISTS', P .. 'job:' .. job.member, 'payload') == 0 then",
        put="elseif false then",
        test="test_jobs_that_were_tampered_with[valkey]",
    ),
    Mutation(
        check="its stream is the one that it wrote",
        function="claim",
        remove="elseif not num_tokens(P, job) then",
        put="elseif false then",
        test="test_lost_stream_of_a_started_job[valkey]",
    ),
    Mutation(
        check="state of a job that ran before",
        function="claim",
        remove="elseif job.status ~= 'queued' then\n          call.cleared",
        put="elseif false then\n          call.cleared",
        test="test_a_running_job_that_stands_in_line_is_not_given_out_twice[valkey]",
    ),
    Mutation(
        check="what stands in line and is not queued counts as cleared",
        function="claim",
        remove="elseif job.status ~= 'queued' then\n          call.cleared = call.cleared + 1",
        put="elseif job.status ~= 'queued' then\n          call.cleared = call.cleared",
        test="test_one_claim_clears_so_much_and_no_more[valkey-again]",
    ),
    Mutation(
        check="a job whose stream takes no marker counts as cleared",
        function="claim",
        remove="  if type(marker) == 'table' then\n    call.cleared = call.cleared + 1",
        put="  if type(marker) == 'table' then",
        test="test_one_claim_clears_so_much_and_no_more[valkey-sealed]",
    ),
    Mutation(
        check="a queue is a stream",
        function="claim",
        remove="if entries.err then",
        put="if false then",
        test="test_sweep_finds_queues_that_submit_did_not_write[valkey]",
    ),
    Mutation(
        check="a queue's entry is one of ours",
        function="claim",
        remove="fields[1] == 'job' and fields[2] or ''",
        put="fields[2]",
        test="test_rubbish_in_a_queue_stops_nothing[valkey]",
    ),
    Mutation(
        check="it names a job",
        function="claim",
        remove="if string.match(id, '^[%w._-]+$') then",
        put="if true then",
        test="test_rubbish_in_a_queue_stops_nothing[valkey]",
    ),
    Mutation(
        check="the job names that entry",
        function="claim",
        remove="if job and job.entry == entry then",
        put="if job then",
        test="test_rubbish_in_a_queue_stops_nothing[valkey]",
    ),
    Mutation(
        check="the stream takes the marker",
        function="claim",
        remove="if type(marker) == 'table' then",
        put="if false then",
        test="test_jobs_that_were_tampered_with[valkey]",
    ),
    Mutation(
        check="marker of a second claim",
        function="claim",
        remove="""job.mk + 1, job.claims + 1
  local n = num_tokens(P, job)
  local marker = redis""",
        put="""math.max(1, job.mk), job.claims + 1
  local n = num_tokens(P, job)
  local marker = job.mk > 0 and '' or redis""",
        test="test_a_delayed_step_of_the_same_session_comes_after_release_and_claim[valkey]",
    ),
)
