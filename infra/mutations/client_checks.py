"""Checks of what clients call, and of what every function reads."""

from __future__ import annotations

from .mutation import Mutation

CLIENT_CHECKS = (
    Mutation(
        check="a job's hash is a hash",
        function="load_job",
        remove="  if v.err then\n    return nil, 'broken'\n  end\n  if not v[1] then",
        put="  if not v[1] then",
        test="test_a_hash_of_another_type_is_written_off[valkey]",
    ),
    Mutation(
        check="a job's numbers are numbers",
        function="load_job",
        remove="not (is_known and has_numbers)",
        put="not is_known",
        test="test_jobs_that_were_tampered_with[valkey]",
    ),
    Mutation(
        check="a stream is one, and no shorter than its markers",
        function="num_tokens",
        remove="if type(length) ~= 'number' or length < job.mk then",
        put="if false then",
        test="test_lost_stream_of_a_started_job[valkey]",
    ),
    Mutation(
        check="a job's status is one",
        function="load_job",
        remove="not (is_known and has_numbers)",
        put="not has_numbers",
        test="test_a_hash_that_cannot_be_a_jobs[valkey-status-]",
    ),
    Mutation(
        check="a job's numbers can be counted with",
        function="load_job",
        remove="number >= low and number <= (high or 1e13) and number % 1 == 0",
        put="true",
        test="test_a_hash_that_cannot_be_a_jobs[valkey-cost-nan]",
    ),
    Mutation(
        check="a job's entry is an id",
        function="load_job",
        remove=" or (job.entry and not is_entry(job.entry))",
        put="",
        test="test_a_hash_that_cannot_be_a_jobs[valkey-entry-:]",
    ),
    Mutation(
        check="the job can be one",
        function="submit",
        remove="if not is_sound(argv, cost) then",
        put="if false then",
        test="test_a_submission_that_can_be_no_job[valkey-priority]",
    ),
    Mutation(
        check="tenant, id and tags are names",
        function="submit",
        remove="return #text <= 128 and string.match(text, '^[%w._-]+$') ~= nil",
        put="return true",
        test="test_a_submission_that_can_be_no_job[valkey-tenant]",
    ),
    Mutation(
        check="digest",
        function="submit",
        remove="return known[1] == digest and { 'EXISTS', known[2] } or { 'CONFLICT' }",
        put="return { 'EXISTS', known[2] }",
        test="test_submit_again[valkey]",
    ),
    Mutation(
        check="the id is new",
        function="submit",
        remove="  if known[1] then\n    return known[1] == digest",
        put="  if false then\n    return known[1] == digest",
        test="test_submit_again[valkey]",
    ),
    Mutation(
        check="the deadline is to come",
        function="submit",
        remove="if deadline_ms and deadline_ms <= 0 then",
        put="if false then",
        test="test_deadline[valkey]",
    ),
    Mutation(
        check="cap of jobs",
        function="submit",
        remove="if max_jobs > 0 and",
        put="if false and",
        test="test_caps_of_a_tenant[valkey]",
    ),
    Mutation(
        check="cap of bytes",
        function="submit",
        remove="if max_bytes > 0 and",
        put="if false and",
        test="test_caps_of_a_tenant[valkey]",
    ),
    Mutation(
        check="no stream of a former life",
        function="submit",
        remove="redis.call('DEL', key, P .. 'out:' .. member)\n  local entry",
        put="local entry",
        test="test_a_stream_of_a_former_life_is_no_part_of_the_next[valkey]",
    ),
    Mutation(
        check="the job has not ended",
        function="cancel",
        remove="if not TERMINAL[job.status] then\n    seal(P, job, now_ms(), 'cancelled')\n  end",
        put="seal(P, job, now_ms(), 'cancelled')",
        test="test_what_is_done_cannot_be_cancelled[valkey]",
    ),
    Mutation(
        check="the job is there",
        function="cancel",
        remove="problem == 'missing' and 'MISSING' or 'BROKEN'",
        put="'MISSING'",
        test="test_cancel_tells_a_missing_job_from_a_broken_one[valkey]",
    ),
    Mutation(
        check="seal",
        function="cancel",
        remove="  write_terminal(P, job.member, reason, n, failure)\n  conclude",
        put="  conclude",
        test="test_cancel_seals_at_once[valkey]",
    ),
    Mutation(
        check="the job is there",
        function="confirm",
        remove="if redis.call('EXISTS', key) == 0 then",
        put="if false then",
        test="test_confirm_makes_no_job[valkey]",
    ),
)
