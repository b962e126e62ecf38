"""Checks of the walk over the keys that finds jobs whose place others wrote over."""

from __future__ import annotations

from .mutation import Mutation

_FOUND = "test_a_job_that_nothing_names_is_found[valkey-{}]"

PLACE_CHECKS = (
    Mutation(
        check="a running job stands among those running",
        function="sweep",
        remove="return send('ZSCORE', P .. 'running', job.member)",
        put="return true",
        test=_FOUND.format("running-delete"),
    ),
    Mutation(
        check="a waiting job will be tried again",
        function="sweep",
        remove="return send('ZSCORE', P .. 'due', 'retry:' .. job.member)",
        put="return true",
        test=_FOUND.format("waiting-delete"),
    ),
    Mutation(
        check="it will be tried again soon",
        function="sweep",
        remove="if tonumber(page[2][i + 1]) > now + MAX_BACKOFF_MS then",
        put="if false then",
        test="test_a_wait_that_somebody_has_made_long_is_over[valkey]",
    ),
    Mutation(
        check="it has waited as long as it should",
        function="sweep",
        remove="if tonumber(page[2][i + 1]) > now + MAX_BACKOFF_MS then",
        put="if true then",
        test="test_a_wait_that_somebody_has_made_long_is_over[valkey]",
    ),
    Mutation(
        check="a job that ran before stands in line",
        function="sweep",
        remove="return send('ZSCORE', P .. 'again:' .. job.priority, job.member)",
        put="return true",
        test=_FOUND.format("again-delete"),
    ),
    Mutation(
        check="a queue holds the entry of a job that never ran",
        function="sweep",
        remove="return found and found[2][2] == job.id",
        put="return true",
        test=_FOUND.format("queued-delete"),
    ),
    Mutation(
        check="the entry is the job's",
        function="sweep",
        remove="return found and found[2][2] == job.id",
        put="return found",
        test=_FOUND.format("queued-others"),
    ),
    Mutation(
        check="a job in its place is left there",
        function="sweep",
        remove="if not has_place(P, job) then",
        put="if true then",
        test="test_a_job_in_its_place_is_left_there[valkey-waiting]",
    ),
    Mutation(
        check="a job that never ran goes into its tenant's queue",
        function="sweep",
        remove="  elseif job.entry then\n    local entry = append(",
        put="  elseif false then\n    local entry = append(",
        test="test_one_that_never_ran_stands_behind_what_its_tenant_has_waiting[valkey]",
    ),
    Mutation(
        check="the queue takes entries",
        function="sweep",
        remove="local entry = append(P .. 'in:' .. job.priority .. ':' .. job.tenant,",
        put="local entry = send('XADD', P .. 'in:' .. job.priority .. ':' .. job.tenant,",
        test=_FOUND.format("queued-sealed"),
    ),
    Mutation(
        check="a job that waited is counted off",
        function="sweep",
        remove="      count_retrying(P, -1)\n    end\n    requeue(P, job, 'repair')",
        put="    end\n    requeue(P, job, 'repair')",
        test=_FOUND.format("waiting-delete"),
    ),
    Mutation(
        check="a broken hash is no job",
        function="sweep",
        remove="if problem == 'broken' and redis.call('PTTL', P .. 'job:' .. member) == -1 then",
        put="if false then",
        test="test_a_lost_job_whose_hash_is_broken_is_written_off[valkey]",
    ),
    Mutation(
        check="a broken hash has not been written off",
        function="sweep",
        remove=" and redis.call('PTTL', P .. 'job:' .. member) == -1 then",
        put=" then",
        test="test_what_is_no_hash_is_told_of_once[valkey]",
    ),
    Mutation(
        check="the job is there",
        function="sweep",
        remove="  if not job or TERMINAL[job.status] then\n    return\n  end\n  if job.deadline",
        put="  if TERMINAL[job.status] then\n    return\n  end\n  if job.deadline",
        test="test_a_lost_job_whose_hash_is_broken_is_written_off[valkey]",
    ),
    Mutation(
        check="the job lives",
        function="sweep",
        remove="  if not job or TERMINAL[job.status] then\n    return\n  end\n  if job.deadline",
        put="  if not job then\n    return\n  end\n  if job.deadline",
        test="test_a_job_that_has_ended_is_not_found[valkey]",
    ),
    Mutation(
        check="its deadline has not passed",
        function="sweep",
        remove="  if job.deadline > 0 and job.deadline <= now then\n",
        put="  if false then\n",
        test="test_a_job_that_nothing_names_ends_at_its_deadline[valkey-queued]",
    ),
    Mutation(
        check="it has a deadline that may have passed",
        function="sweep",
        remove="  if job.deadline > 0 and job.deadline <= now then\n",
        put="  if job.deadline <= now then\n",
        test="test_a_job_without_a_deadline_gets_none[valkey]",
    ),
    Mutation(
        check="it has a deadline to be noted",
        function="sweep",
        remove="  elseif job.deadline > 0 then\n",
        put="  else\n",
        test="test_a_job_without_a_deadline_gets_none[valkey]",
    ),
    Mutation(
        check="where one was lost the next page comes at once",
        function="sweep",
        remove="done.repaired, done.more = done.repaired + 1, 1",
        put="done.repaired = done.repaired + 1",
        test="test_a_sweep_comes_again_at_once_where_it_found_something[valkey]",
    ),
)
