"""Step, finish and fail, and who may, on both servers."""

from __future__ import annotations

import time

import pytest
from tests.support.queue import CAS, FAILURE, KEYS, NOT_OURS, OK, Queue

from thinkstream_client.errors import Fenced
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.functions import StepReply, StepRow
from thinkstream_client.protocol.session_calls import MAX_LEASE_MS
from thinkstream_client.protocol.wire_request import decode_request
from thinkstream_client.records import JobRef, Request, SessionId


def test_lost_reply_and_gap_are_refused(queue: Queue) -> None:
    ref, session = queue.submit("j"), queue.hello()
    queue.claim(session)
    assert queue.step(session, ref, 1, 5) is OK
    assert queue.step(session, ref, 1, 5) is CAS
    assert queue.step(session, ref, 3, 6) is CAS
    assert queue.step(session, ref, 2, 6) is OK
    assert queue.kinds(ref) == [1, (1, 5), (2, 6)]
    queue.raw.delete(KEYS.out(ref))
    assert queue.step(session, ref, 3, 7) is CAS
    assert not queue.raw.exists(KEYS.out(ref))


def test_rows_stand_by_themselves(queue: Queue) -> None:
    refs, session = [queue.submit(f"j{i}") for i in range(3)], queue.hello()
    queue.claim(session)
    queue.run(functions.cancel(KEYS, refs[1]))
    entry = wire.encode_entry([1], 0, "")
    lengths = (1, 1, 7)
    rows = [StepRow(ref, length, entry, 1, 1) for ref, length in zip(refs, lengths, strict=True)]
    assert queue.run(functions.step(KEYS, 0, session, "n", rows)) == [OK, NOT_OURS, CAS]
    assert queue.run(functions.step(KEYS, 0, session, "n", [])) == []


def test_finish_must_add_up(queue: Queue) -> None:
    ref, session = queue.submit("j", request=Request(prompt="hi", grain=4)), queue.hello()
    queue.claim(session)
    queue.step(session, ref, 1, 1, 2, 3, 4)
    for n, last in ((5, []), (4, [1]), (9, [1])):
        assert queue.finish(session, ref, 2, n, last) is StepReply.INVALID
    assert queue.finish(session, ref, 1, 4) is CAS
    assert queue.finish(session, ref, 2, 8, [1, 2, 3, 4]) is OK


def test_fenced(queue: Queue) -> None:
    ref, session = queue.submit("j"), queue.hello()
    calls: list[Call[object]] = [
        functions.step(KEYS, 0, session, "other", [StepRow(ref, 1, b"", 1, 1)]),
        functions.finish(KEYS, 0, session, "other", []),
        functions.beat(KEYS, 0, session, "other"),
        functions.release(KEYS, 0, session, "other", [ref]),
        functions.fail(KEYS, 0, session, "other", ref, failure=FAILURE, retry=True),
        functions.note(KEYS, 0, session, "other", ref, "{}"),
        functions.bye(KEYS, 0, session, "other"),
        functions.hello(KEYS, 0, session, "other", replica="w", slots=1, lease_ms=9, info={}),
        functions.beat(KEYS, 0, SessionId("nobody"), "n"),
        functions.claim(KEYS, 0, SessionId("nobody"), 1),
    ]
    for call in calls:
        with pytest.raises(Fenced):
            queue.run(call)
    assert queue.info(ref).status is JobStatus.QUEUED


def test_zombie_after_reap(queue: Queue) -> None:
    ref, first = queue.submit("j"), queue.hello("first", lease_ms=30)
    queue.claim(first)
    assert queue.step(first, ref, 1, 5) is OK
    assert queue.run(functions.reap(KEYS, 0)) == 0
    time.sleep(0.05)
    assert queue.run(functions.reap(KEYS, 0)) == 1
    assert queue.run(functions.reap(KEYS, 0)) == 0
    with pytest.raises(Fenced):
        queue.step(first, ref, 2, 6)
    second = queue.hello("second")
    (claimed,) = queue.claim(second)
    assert (claimed.n, claimed.mk, claimed.claims, claimed.suspect) == (1, 2, 2, False)
    assert queue.step(second, ref, 3, 6, mk=2) is OK
    assert queue.kinds(ref) == [1, (1, 5), 2, (2, 6)]


def test_half_a_grain_is_computed_again(queue: Queue) -> None:
    ref, session = queue.submit("j", request=Request(prompt="hi", grain=4)), queue.hello()
    queue.claim(session)
    queue.step(session, ref, 1, 1, 2, 3, 4)
    assert queue.run(functions.release(KEYS, 0, session, "n", [ref, JobRef("a", "other")])) == 1
    other = queue.hello("other")
    (claimed,) = queue.claim(other)
    assert (claimed.n, claimed.mk, queue.info(ref).attempts) == (4, 2, 0)
    assert queue.step(session, ref, 2, 5, 6, 7, 8) is NOT_OURS
    assert queue.step(other, ref, 3, 5, 6, 7, 8, mk=2) is OK
    assert queue.kinds(ref) == [1, (4, 1, 2, 3, 4), 2, (8, 5, 6, 7, 8)]


def test_failing_and_trying_again(queue: Queue) -> None:
    ref, session = queue.submit("j"), queue.hello()
    for attempt in (1, 2):
        queue.claim(session)
        assert queue.fail(session, ref, retry=True) is OK
        info = queue.info(ref)
        assert (info.status, info.attempts, info.failure) == (JobStatus.WAITING, attempt, FAILURE)
        assert queue.run(functions.backlog(KEYS, 0)).retrying == 1
        assert queue.claim(session) == []
        queue.raw.zadd(KEYS.due(0), {f"retry:{ref.tenant}:{ref.job_id}": 1}, xx=True)
        assert queue.run(functions.sweep(KEYS, 0)).retried == 1
    queue.claim(session)
    assert queue.fail(session, ref, retry=True) is OK
    assert queue.end_of(ref).error == FAILURE
    assert queue.run(functions.backlog(KEYS, 0)).retrying == 0
    (letter,) = queue.run(functions.dead_letters(KEYS, 0))
    assert (letter.ref, letter.attempts, letter.failure) == (ref, 3, FAILURE)
    assert decode_request(letter.payload).prompt == "hi"
    assert queue.fail(session, ref, retry=True) is NOT_OURS


def test_failing_for_good(queue: Queue) -> None:
    ref, session = queue.submit("j"), queue.hello()
    queue.claim(session)
    assert queue.run(functions.note(KEYS, 0, session, "n", ref, '{"top_k": 5}')) is OK
    assert queue.fail(session, ref, retry=False) is OK
    info = queue.info(ref)
    assert (info.status, info.failure, info.note) == (JobStatus.FAILED, FAILURE, '{"top_k": 5}')
    assert queue.run(functions.note(KEYS, 0, session, "n", ref, "{}")) is NOT_OURS


def test_the_longest_lease_is_one_that_the_functions_know(queue: Queue) -> None:
    longest = queue.hello("longest", lease_ms=MAX_LEASE_MS)
    assert queue.run(functions.beat(KEYS, 0, longest, "n")) == {}
    queue.run(functions.sweep(KEYS, 0))
    assert queue.run(functions.beat(KEYS, 0, longest, "n")) == {}
    longer = queue.hello("longer", lease_ms=MAX_LEASE_MS + 1)
    with pytest.raises(Fenced):
        queue.run(functions.beat(KEYS, 0, longer, "n"))
