"""Dead letters: a retried job goes on where it stopped, on both servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from tests.support.audit import Snapshot

from thinkstream_client.errors import InvalidRequest, LetterNotFound, RecordInvalid
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import JobFailure, JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import StepReply, StepRow
from thinkstream_client.protocol.wire_request import decode_request
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

KEYS, SESSION, REF = Keys(), SessionId("w.1"), JobRef("a", "job")
FAILURE = JobFailure(code="JobFailed", message="no")
REQUEST = Request(prompt="hi", grain=2, tags=("t", "u"))


class Partition:
    """A server with one job that has died behind two entries of its result."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(RedisSettings(url))
        self.run = self._connection.run
        self.raw: Any = redis.Redis.from_url(url)
        self.run(functions.hello(KEYS, 0, SESSION, "n", replica="w", slots=9, lease_ms=60_000, info={}))
        self.run(functions.submit(KEYS, REF, REQUEST, priority=2, deadline_ms=90_000, batch="b"))
        self.letter = self.die(2)

    def die(self, num_entries: int) -> str:
        """Claims the job, brings some entries and fails it; returns the letter's id."""
        (one,) = self.run(functions.claim(KEYS, 0, SESSION, 1))
        for number in range(num_entries):
            length = one.n // one.grain + one.mk + number
            row = StepRow(REF, length, wire.encode_entry((5, 6), 0, ""), one.mk, one.grain)
            assert self.run(functions.step(KEYS, 0, SESSION, "n", [row])) == [StepReply.OK]
        self.run(functions.fail(KEYS, 0, SESSION, "n", REF, failure=FAILURE, retry=False))
        return self.run(functions.dead_letters(KEYS, 0))[0].id

    def ids(self) -> list[str]:
        return [entry_id.decode() for entry_id, _ in self.raw.xrange(KEYS.out(REF))]

    def close(self) -> None:
        self._connection.close()
        self.raw.close()


@pytest.fixture
def partition(any_redis_url: str) -> Iterator[Partition]:
    partition = Partition(any_redis_url)
    yield partition
    partition.close()


def test_a_retried_job_goes_on_behind_its_tokens(partition: Partition) -> None:
    assert partition.run(functions.dead_retry(KEYS, partition.letter)) == REF
    info = partition.run(functions.job_info(KEYS, REF))
    assert (info.status, info.attempts, info.suspect, info.mk) == (JobStatus.QUEUED, 0, False, 1)
    assert (info.priority, info.tags, info.deadline_at_ms, info.failure) == (2, ("t", "u"), None, None)
    assert partition.ids() == ["0-1", "2-0", "4-0"]
    assert partition.raw.ttl(KEYS.out(REF)) == partition.raw.ttl(KEYS.job(REF)) == -1
    assert partition.raw.zrange(KEYS.due(0), 0, -1) == []
    assert partition.run(functions.tenants(KEYS, 0))[0].num_queued == 1
    (one,) = partition.run(functions.claim(KEYS, 0, SESSION, 1))
    assert (one.n, one.mk, decode_request(one.payload)) == (4, 2, REQUEST)
    row = StepRow(REF, 4, wire.encode_entry((5, 6), 0, ""), 2, 2)
    assert partition.run(functions.step(KEYS, 0, SESSION, "n", [row])) == [StepReply.OK]
    assert partition.ids() == ["0-1", "2-0", "4-0", "4-2", "6-0"]
    again = partition.run(functions.submit(KEYS, REF, REQUEST))
    assert not again.created, "it is the same job"


def test_a_job_may_die_and_be_retried_again(partition: Partition) -> None:
    partition.run(functions.dead_retry(KEYS, partition.letter))
    letter = partition.die(1)
    assert partition.run(functions.backlog(KEYS, 0)).dead == 1
    partition.run(functions.dead_retry(KEYS, letter))
    (one,) = partition.run(functions.claim(KEYS, 0, SESSION, 1))
    assert (one.n, one.mk) == (6, 3)
    assert partition.run(functions.backlog(KEYS, 0)).dead == 0


def _expire_result(raw: Any) -> None:
    raw.delete(KEYS.out(REF))


def _expire_job(raw: Any) -> None:
    raw.delete(KEYS.out(REF), KEYS.job(REF))


def _spoil_result(raw: Any) -> None:
    raw.delete(KEYS.out(REF))
    raw.set(KEYS.out(REF), "rubbish")


@pytest.mark.parametrize("lose", [_expire_result, _expire_job, _spoil_result])
def test_what_has_expired_begins_anew(partition: Partition, lose: Callable[[Any], None]) -> None:
    lose(partition.raw)
    partition.run(functions.dead_retry(KEYS, partition.letter))
    (one,) = partition.run(functions.claim(KEYS, 0, SESSION, 1))
    assert (one.n, one.mk, partition.run(functions.job_info(KEYS, REF)).priority) == (0, 1, 2)
    assert partition.ids() == ["0-1"]
    assert [job.ref for job in partition.run(functions.list_jobs(KEYS, 0, "a", tag="u"))] == [REF]


def test_a_job_that_lives_is_not_retried(partition: Partition) -> None:
    entry = partition.raw.xrange(KEYS.dead(0))[0]
    partition.run(functions.dead_retry(KEYS, partition.letter))
    partition.raw.xadd(KEYS.dead(0), entry[1])  # a letter of a life that is over
    letter = partition.run(functions.dead_letters(KEYS, 0))[0].id
    with pytest.raises(InvalidRequest, match="job job is queued"):
        partition.run(functions.dead_retry(KEYS, letter))
    assert partition.run(functions.dead_letter(KEYS, letter)).ref == REF


FORGED = {
    "grain": ["x", "0", "nan", "1025", "", "0x2", "2e0", "02"],
    **{field: ["x", "nan", "-1", "1e999", "", "0x1", "1e0", " 1 ", "01"] for field in ("cost", "ttl")},
    "priority": ["x", "nan", "-1", "1e999", "", "0.0", "0x1", "00", "-0"],
    "prompt_cost": ["x", "-1", "1e0"],
    "tags": ["a:*", "\xff"],
    "tenant": ["", "a:b"],
    "job": ["", "a b"],
    "digest": [""],
    "payload": [""],
}


@pytest.mark.parametrize(("field", "value"), [(field, one) for field in FORGED for one in FORGED[field]])
def test_a_forged_letter_changes_nothing(partition: Partition, field: str, value: str) -> None:
    """The tokens that the job has published stay, and the letter too."""
    _, fields = partition.raw.xrange(KEYS.dead(0))[0]
    letter = partition.raw.xadd(KEYS.dead(0), {**fields, field.encode(): value}).decode()
    assert_refused(partition, letter)


@pytest.mark.parametrize("field", ["grain", "cost", "priority", "ttl", "digest", "payload", "tenant", "job"])
def test_a_letter_without_a_field_changes_nothing(partition: Partition, field: str) -> None:
    _, fields = partition.raw.xrange(KEYS.dead(0))[0]
    del fields[field.encode()]
    assert_refused(partition, partition.raw.xadd(KEYS.dead(0), fields).decode())


@pytest.mark.parametrize(("field", "value"), [("digest", "other"), ("grain", "1")], ids=["digest", "grain"])
def test_a_letter_of_another_job_changes_nothing(partition: Partition, field: str, value: str) -> None:
    _, fields = partition.raw.xrange(KEYS.dead(0))[0]
    letter = partition.raw.xadd(KEYS.dead(0), {**fields, field.encode(): value}).decode()
    assert_refused(partition, letter, lose=False)


def assert_refused(partition: Partition, letter: str, *, lose: bool = True) -> None:
    """With the job's hash and without it: nothing changes."""
    for _ in range(1 + lose):
        before = Snapshot(partition.raw, KEYS).of
        with pytest.raises(RecordInvalid, match="holds no job that could be tried"):
            partition.run(functions.dead_retry(KEYS, letter))
        assert Snapshot(partition.raw, KEYS).of == before
        partition.raw.delete(KEYS.job(REF))


@pytest.mark.parametrize("field", ["mk", "claims", "charged"])
@pytest.mark.parametrize("value", ["nan", "1e300", "x", "-1"])
def test_a_dead_job_whose_numbers_are_none_begins_anew(partition: Partition, field: str, value: str) -> None:
    partition.raw.hset(KEYS.job(REF), field, value)
    partition.run(functions.dead_retry(KEYS, partition.letter))
    (one,) = partition.run(functions.claim(KEYS, 0, SESSION, 1))
    assert (one.ref, one.n) == (REF, 0 if field == "mk" else 4)


@pytest.mark.parametrize("value", ["1e1", "0x1", " 1 ", "01"])
def test_a_dead_jobs_numbers_are_kept_only_as_such(partition: Partition, value: str) -> None:
    partition.raw.hset(KEYS.job(REF), mapping={"claims": value, "charged": value})
    partition.run(functions.dead_retry(KEYS, partition.letter))
    assert partition.raw.hmget(KEYS.job(REF), "claims", "charged") == [b"0", b"0"]


def test_a_dead_job_whose_markers_cannot_be_counted_begins_anew(partition: Partition) -> None:
    partition.raw.hset(KEYS.job(REF), "mk", -1)
    partition.raw.delete(KEYS.out(REF))
    for entry_id in ("0-1", "6-0"):
        partition.raw.xadd(KEYS.out(REF), {"t": "x"}, id=entry_id)
    partition.run(functions.dead_retry(KEYS, partition.letter))
    (one,) = partition.run(functions.claim(KEYS, 0, SESSION, 1))
    assert (one.ref, one.n) == (REF, 0)


def test_a_result_that_holds_a_foreign_entry_begins_anew(partition: Partition) -> None:
    """One of thousands of fields, which Lua could not even write back."""
    out = KEYS.out(REF)
    partition.raw.delete(out)
    fields = {str(number): "x" for number in range(5000)}
    for entry_id in ("0-1", "2-0", "4-0"):
        partition.raw.xadd(out, fields, id=entry_id)
    partition.run(functions.dead_retry(KEYS, partition.letter))
    (one,) = partition.run(functions.claim(KEYS, 0, SESSION, 1))
    assert (one.ref, one.n) == (REF, 0)


def test_what_is_no_job_can_only_be_dropped(partition: Partition) -> None:
    partition.raw.xadd(KEYS.queue(0, 1, "a"), {"job": "nobody"})
    partition.run(functions.sweep(KEYS, 0))
    partition.run(functions.claim(KEYS, 0, SESSION, 1))
    letter = partition.run(functions.dead_letters(KEYS, 0))[0]
    assert letter.reason == "missing"
    with pytest.raises(RecordInvalid, match="holds no job"):
        partition.run(functions.dead_retry(KEYS, letter.id))
    partition.run(functions.dead_drop(KEYS, letter.id))
    for call in (functions.dead_drop, functions.dead_retry, functions.dead_letter):
        with pytest.raises(LetterNotFound, match=f"dead letter {letter.id}: not found"):
            partition.run(call(KEYS, letter.id))


def test_ids_name_the_partition_where_there_are_several(partition: Partition) -> None:
    keys = Keys(num_partitions=3)
    assert functions.dead_letter(keys, "7-1@2").args[1] == keys.dead(2)
    for wrong in ("7-1@3", "7", "7-1@", "x-1", f"{2**64}-0", f"0-{2**64}", f"{'9' * 20}-0"):
        for call in (functions.dead_drop, functions.dead_retry, functions.dead_letter):
            with pytest.raises(InvalidRequest, match=r"letter: got '.*', allowed: "):
                call(keys, wrong)
    assert functions.dead_letter(keys, wire.SEAL_ID.decode()).args[2] == wire.SEAL_ID.decode()
    (letter,) = partition.run(functions.dead_letters(KEYS, 0))
    assert letter.id == letter.entry_id


@pytest.mark.parametrize("limit", [0, -1, 10**30, 10_001])
def test_how_many_are_listed_has_bounds(limit: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"limit: got {limit}, allowed: an integer in \[1, 10000\]"):
        functions.dead_letters(KEYS, 0, limit=limit)
