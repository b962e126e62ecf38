"""Reading jobs and results, on both servers."""

from __future__ import annotations

import logging

import pytest
from tests.support.queue import KEYS, NOT_OURS, OK, Queue

from thinkstream_client.errors import InvalidRequest, RecordInvalid
from thinkstream_client.outcome import FinishReason, JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.wire_request import decode_request
from thinkstream_client.records import Request


def test_life_of_a_job(queue: Queue) -> None:
    ref = queue.submit("j", request=Request(prompt="hi", grain=2, tags=("night", "x")))
    session = queue.hello()
    (claimed,) = queue.claim(session)
    assert (claimed.ref, claimed.mk, claimed.n, claimed.claims, claimed.suspect) == (ref, 1, 0, 1, False)
    assert decode_request(claimed.payload).prompt == "hi"
    assert queue.step(session, ref, 1, 5, 6) is OK
    assert queue.step(session, ref, 2, 7, 8) is OK
    assert queue.info(ref).status is JobStatus.RUNNING
    assert queue.info(ref).owner == session
    assert queue.finish(session, ref, 3, 5, [9]) is OK
    assert queue.kinds(ref) == [1, (2, 5, 6), (4, 7, 8), (5, 9), "stop"]
    info = queue.info(ref)
    assert (info.status, info.reason, info.n) == (JobStatus.DONE, FinishReason.STOP, 5)
    assert (info.payload, info.owner, info.tags) == (None, None, ("night", "x"))
    assert queue.step(session, ref, 5, 1, 2) is NOT_OURS
    assert queue.finish(session, ref, 3, 5, [9]) is NOT_OURS
    assert queue.run(functions.beat(KEYS, 0, session, "n")) == {}
    assert queue.run(functions.job_status(KEYS, ref)) is JobStatus.DONE


def test_reading_from_the_middle(queue: Queue) -> None:
    ref, session = queue.submit("j", request=Request(prompt="hi", grain=2)), queue.hello()
    queue.claim(session)
    queue.step(session, ref, 1, 5, 6)
    queue.step(session, ref, 2, 7, 8)
    # An entry is found by any position inside it; a marker is passed by naming it.
    for position, indexes in {1: [2, 4], 2: [4], 3: [4], 4: []}.items():
        assert [e.index for e in queue.read(ref, position) if isinstance(e, wire.Entry)] == indexes
    assert isinstance(queue.read(ref, 0)[0], wire.Marker)
    assert isinstance(queue.read(ref, (0, 1))[0], wire.Entry)


BROKEN = [
    ("status", b"unheard of"),
    ("status", b"\xff"),
    ("priority", b"high"),
    ("priority", b"3"),
    ("priority", b"-1"),
    ("submitted", b"soon"),
    ("submitted", b"1" * 5000),
    ("submitted", b"9" * 16),
    ("submitted", b"1e12"),
    ("submitted", None),
    ("finished", b"inf"),
    ("n", b"-1"),
    ("n", b" 1"),
    ("reason", b"none"),
    ("tags", b"\xff"),
]


@pytest.mark.parametrize(("field", "value"), BROKEN)
def test_a_broken_hash_hides_no_other_job(
    queue: Queue, caplog: pytest.LogCaptureFixture, field: str, value: bytes | None
) -> None:
    first, broken, last = (queue.submit(name) for name in ("first", "broken", "last"))
    key = KEYS.job(broken)
    queue.raw.hdel(key, field) if value is None else queue.raw.hset(key, field, value)
    with caplog.at_level(logging.WARNING):
        found = queue.run(functions.list_jobs(KEYS, 0, "a"))
    assert {one.ref for one in found} == {first, last}
    (record,) = caplog.records
    assert "1 jobs of tenant a" in record.getMessage() and "broken" in record.getMessage()
    with pytest.raises(RecordInvalid):
        queue.run(functions.job_info(KEYS, broken))


def test_a_name_that_is_none_hides_no_other_job(queue: Queue) -> None:
    ref = queue.submit("j")
    queue.raw.zadd(KEYS.jobs(0, "a"), {b"\xff": 1, b"nobody": 2})
    queue.raw.hset(KEYS.prefix(0).encode() + b"job:a:\xff", mapping=queue.raw.hgetall(KEYS.job(ref)))
    assert [one.ref for one in queue.run(functions.list_jobs(KEYS, 0, "a"))] == [ref]


@pytest.mark.parametrize("limit", [0, -1, 1_000_001, None])
def test_the_length_of_a_list_has_limits(limit: int) -> None:
    with pytest.raises(InvalidRequest, match=r"^limit: .* \[1, 1000000\]$"):
        functions.list_jobs(KEYS, 0, "a", limit=limit)
