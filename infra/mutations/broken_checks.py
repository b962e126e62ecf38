"""Checks of sessions and jobs that others wrote over."""

from __future__ import annotations

from .mutation import Mutation

_BROKEN = "test_a_broken_session_is_reaped[valkey-{}]"
_GIVEN = "test_a_broken_session_is_given_nothing_and_stops_nobody[valkey-{}]"

_SESSIONS = (
    Mutation(
        check="the session's hash is one",
        function="beat, step, finish, ...",
        remove="redis.pcall('HMGET', P .. 'session:' .. session, 'nonce', 'lease_ms')",
        put="redis.call('HMGET', P .. 'session:' .. session, 'nonce', 'lease_ms')",
        test="test_a_session_of_another_type_is_none[valkey]",
    ),
    Mutation(
        check="the lease is a length of time",
        function="beat, step, finish, ...",
        remove="return whole(v[2], 1, DAY_MS)",
        put="return tonumber(v[2])",
        test="test_a_lease_that_is_none_renews_nothing[valkey-inf]",
    ),
    Mutation(
        check="slots are a number",
        function="claim",
        remove="local slots, num_owned = whole(v[1], 0), ",
        put="local slots, num_owned = tonumber(v[1]), ",
        test=_GIVEN.format("nan"),
    ),
    Mutation(
        check="what is owned is a hash",
        function="claim",
        remove="if not slots or type(num_owned) ~= 'number' or not lease",
        put="if not slots or not lease",
        test=_GIVEN.format("abc"),
    ),
    Mutation(
        check="what is shown of a session is there",
        function="sessions",
        remove="if num_owned and fields then",
        put="if true then",
        test=_GIVEN.format("abc"),
    ),
    Mutation(
        check="a session has a nonce",
        function="sweep",
        remove="return v[1] and whole(v[2], 0) and",
        put="return whole(v[2], 0) and",
        test=_BROKEN.format("{'nonce': None}"),
    ),
    Mutation(
        check="a session's slots are a number",
        function="sweep",
        remove="return v[1] and whole(v[2], 0) and",
        put="return v[1] and",
        test=_BROKEN.format("{'slots': 'nan'}"),
    ),
    Mutation(
        check="a session's lease is a length of time",
        function="sweep",
        remove="type(num_owned) == 'number' and whole(v[3], 1, DAY_MS) or nil",
        put="type(num_owned) == 'number' and tonumber(v[3]) or nil",
        test=_BROKEN.format("{'lease_ms': '86400001'}"),
    ),
    Mutation(
        check="what a session owns is a hash",
        function="sweep",
        remove="type(num_owned) == 'number' and whole(v[3], 1, DAY_MS) or nil",
        put="whole(v[3], 1, DAY_MS) or nil",
        test=_BROKEN.format("own"),
    ),
    Mutation(
        check="a mark is one",
        function="beat, finish",
        remove="if whole(mk, 1) and whole(grain, 1, MAX_GRAIN) then",
        put="if true then",
        test="test_a_mark_that_is_none_is_made_again[valkey-x]",
    ),
    Mutation(
        check="its job is there",
        function="beat, finish",
        remove="if not job or job.owner ~= session then\n    return nil",
        put="if job.owner ~= session then\n    return nil",
        test="test_a_mark_that_nobody_can_tell[valkey]",
    ),
    Mutation(
        check="its job is the session's",
        function="finish",
        remove="if not job or job.owner ~= session then\n    return nil",
        put="if not job then\n    return nil",
        test="test_a_mark_of_another_ones_job_is_not_made_again[valkey]",
    ),
    Mutation(
        check="a mark could be made again",
        function="beat",
        remove="    elseif mark then",
        put="    else",
        test="test_a_mark_that_nobody_can_tell[valkey]",
    ),
    Mutation(
        check="what is owned has the name of a job",
        function="beat, reap, bye",
        remove="      if tenant then\n        count(P, tenant, 'running', -1)\n      end\n",
        put="      count(P, tenant, 'running', -1)\n",
        test="test_what_is_no_job_among_those_owned[valkey]",
    ),
)

_JOBS = (
    Mutation(
        check="a running job's hash is whole",
        function="sweep",
        remove="    if problem == 'broken' then\n      condemn(P, member, now, 'running')\n    end\n",
        test="test_a_running_job_whose_hash_is_broken[valkey-grain-sweep]",
    ),
    Mutation(
        check="a waiting job's hash is whole",
        function="sweep",
        remove="if problem == 'broken' then\n      condemn(P, name",
        put="if false then\n      condemn(P, name",
        test="test_a_waiting_job_whose_hash_is_broken[valkey]",
    ),
    Mutation(
        check="a broken job has the name of one",
        function="condemn",
        remove="if tenant and not TERMINAL[v[1]] then",
        put="if not TERMINAL[v[1]] then",
        test="test_a_broken_job_whose_deadline_has_come[valkey]",
    ),
    Mutation(
        check="a broken job has not ended",
        function="condemn",
        remove="if tenant and not TERMINAL[v[1]] then",
        put="if tenant then",
        test="test_a_job_that_has_ended_is_not_written_off[valkey]",
    ),
    Mutation(
        check="a broken job has the name of one",
        function="write_off",
        remove="if not tenant or TERMINAL[v[1]] then",
        put="if TERMINAL[v[1]] then",
        test="test_a_queue_and_a_set_of_another_type[valkey]",
    ),
    Mutation(
        check="a broken job has not ended",
        function="write_off",
        remove="if not tenant or TERMINAL[v[1]] then",
        put="if not tenant then",
        test="test_a_job_that_has_ended_is_not_written_off[valkey]",
    ),
    Mutation(
        check="its batch is a name",
        function="write_off",
        remove="  if v[3] and is_name(v[3]) then",
        put="  if v[3] then",
        test="test_a_broken_jobs_batch_that_is_no_name[valkey]",
    ),
    Mutation(
        check="its class is one",
        function="write_off",
        remove="if priority and entry and",
        put="if entry and",
        test="test_a_hash_that_cannot_be_a_jobs[valkey-priority-3]",
    ),
    Mutation(
        check="its entry is an id",
        function="write_off",
        remove="if priority and entry and is_entry(entry) then",
        put="if priority and entry then",
        test="test_a_hash_that_cannot_be_a_jobs[valkey-entry-:]",
    ),
    Mutation(
        check="it was counted as running",
        function="write_off",
        remove="if was == 'running' and was_held then",
        put="if was == 'running' then",
        test="test_a_broken_job_that_nobody_counted_is_not_counted_off[valkey]",
    ),
    Mutation(
        check="it was held as running where nothing else tells",
        function="write_off",
        remove="  was = was or was_held and 'running'\n",
        test="test_a_lost_job_whose_status_is_broken_is_counted_off[valkey]",
    ),
)

BROKEN_CHECKS: tuple[Mutation, ...] = (*_SESSIONS, *_JOBS)
