"""Checks of dead letters that are to be tried again: others may have written them, or the job's stream."""

from __future__ import annotations

from .mutation import Mutation

_FORGED = "test_a_forged_letter_changes_nothing[valkey-{}]"

_PARTS = (
    Mutation(
        check="the tags are names",
        function="dead_retry",
        remove="    if not is_name(tag) then\n      return false\n    end\n",
        test=_FORGED.format("tags-a:*"),
    ),
    Mutation(
        check="the tenant is a name",
        function="dead_retry",
        remove="is_name(letter.tenant or '') and ",
        test=_FORGED.format("tenant-a:b"),
    ),
    Mutation(
        check="the id is a name",
        function="dead_retry",
        remove="is_name(letter.job or '') and ",
        test=_FORGED.format("job-a b"),
    ),
    Mutation(
        check="there is a digest",
        function="dead_retry",
        remove="(letter.digest or '') ~= ''\n    and ",
        test=_FORGED.format("digest-"),
    ),
    Mutation(
        check="there is a payload",
        function="dead_retry",
        remove="(letter.payload or '') ~= '' and ",
        test=_FORGED.format("payload-"),
    ),
    Mutation(
        check="the grain is one",
        function="dead_retry",
        remove="whole(letter.grain, 1, MAX_GRAIN) and ",
        test=_FORGED.format("grain-x"),
    ),
    Mutation(
        check="the cost is one",
        function="dead_retry",
        remove="whole(letter.cost, 0)\n    and ",
        test=_FORGED.format("cost-x"),
    ),
    Mutation(
        check="the prompt's share of the cost is one",
        function="dead_retry",
        remove="\n    and ((letter.prompt_cost or '') == '' or whole(letter.prompt_cost, 0))",
        test=_FORGED.format("prompt_cost-x"),
    ),
    Mutation(
        check="the class is one",
        function="dead_retry",
        remove="whole(letter.priority, 0, #CLASSES - 1) and ",
        test=_FORGED.format("priority--1"),
    ),
    Mutation(
        check="the time to live is one",
        function="dead_retry",
        remove=" and whole(letter.ttl, 1)",
        test=_FORGED.format("ttl-x"),
    ),
)

_WHOLE = (
    Mutation(
        check="a number is written as we write it",
        function="dead_retry, submit, ...",
        remove="text and (text == '0' or string.match(text, '^%-?[1-9]%d*$')) and tonumber(text)",
        put="tonumber(text)",
        test=_FORGED.format("priority-0x1"),
    ),
    Mutation(
        check="a number has no zeros before it",
        function="dead_retry, submit, ...",
        remove="'^%-?[1-9]%d*$'",
        put="'^%-?%d+$'",
        test=_FORGED.format("priority-00"),
    ),
    Mutation(
        check="the claims of a dead job are a number",
        function="dead_retry",
        remove="whole(known[3], 0) or 0",
        put="known[3] or 0",
        test="test_a_dead_jobs_numbers_are_kept_only_as_such[valkey-1e1]",
    ),
    Mutation(
        check="what a dead job was charged is a number",
        function="dead_retry",
        remove="whole(known[4], 0) or 0",
        put="known[4] or 0",
        test="test_a_dead_jobs_numbers_are_kept_only_as_such[valkey-1e1]",
    ),
    Mutation(
        check="the letter is there",
        function="dead_retry",
        remove="  if not letter then\n    return { 'MISSING' }\n  end\n  if not is_job",
        put="  if not is_job",
        test="test_a_letter_that_is_not_there[valkey]",
    ),
    Mutation(
        check="the letter holds a job",
        function="dead_retry",
        remove="if not is_job(letter) then",
        put="if false then",
        test="test_what_is_no_job_can_only_be_dropped[valkey]",
    ),
    Mutation(
        check="the job is not alive",
        function="dead_retry",
        remove="if known[1] and known[1] ~= 'failed' then",
        put="if false then",
        test="test_a_job_that_lives_is_not_retried[valkey]",
    ),
    Mutation(
        check="its hash may be gone",
        function="dead_retry",
        remove="elseif known[1] and (known[5]",
        put="elseif (known[5]",
        test="test_what_has_expired_begins_anew[valkey-_expire_job]",
    ),
    Mutation(
        check="the letter's digest is its job's",
        function="dead_retry",
        remove="known[5] ~= letter.digest or ",
        test="test_a_letter_of_another_job_changes_nothing[valkey-digest]",
    ),
    Mutation(
        check="the letter's grain is its job's",
        function="dead_retry",
        remove=" or known[6] ~= letter.grain",
        test="test_a_letter_of_another_job_changes_nothing[valkey-grain]",
    ),
)

_STREAM = (
    Mutation(
        check="its stream is there",
        function="dead_retry",
        remove="return last and mk >= 1",
        put="return mk >= 1",
        test="test_what_has_expired_begins_anew[valkey-_expire_result]",
    ),
    Mutation(
        check="its number of markers is one",
        function="dead_retry",
        remove="return last and mk >= 1 and",
        put="return last and",
        test="test_a_dead_job_whose_markers_cannot_be_counted_begins_anew[valkey]",
    ),
    Mutation(
        check="its stream adds up",
        function="dead_retry",
        remove=" and string.match(last[1], '^(%d+)-') == string.format('%.0f', (#entries - mk) * grain)",
        test="test_a_dead_job_whose_stream_has_a_hole_begins_anew[valkey]",
    ),
    Mutation(
        check="its entries are of one field",
        function="dead_retry",
        remove="if #entry[2] ~= 2 then",
        put="if false then",
        test="test_a_result_that_holds_a_foreign_entry_begins_anew[valkey]",
    ),
)

LETTER_CHECKS: tuple[Mutation, ...] = (*_WHOLE, *_PARTS, *_STREAM)
