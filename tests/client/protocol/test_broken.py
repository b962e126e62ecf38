"""Sessions and jobs whose hashes or marks others wrote over: each ends, and nobody waits for it."""

from __future__ import annotations

import pytest
from tests.support.partition import FAILURE, KEYS, NOT_OURS, OK, Partition, finish, step, sweep

from thinkstream_client.errors import Fenced
from thinkstream_client.outcome import FinishReason, JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.records import JobRef

DAY_MS = 86_400_000


def end_of(partition: Partition, ref: JobRef) -> tuple[FinishReason, int]:
    entries = partition.run(functions.read_results(KEYS, {ref: 0}, block_ms=None, count=None))[ref]
    assert isinstance(entries[-1], wire.Terminal)
    return entries[-1].finish.reason, entries[-1].finish.num_tokens


def letters(partition: Partition) -> list[tuple[str, str]]:
    found = partition.run(functions.dead_letters(KEYS, 0))
    return [(one.ref.job_id, one.reason) for one in found][::-1]


def num_counted(partition: Partition, tenant: str = "a") -> tuple[int, int, int]:
    """Jobs that count as queued, their bytes, and jobs that count as running."""
    for one in partition.run(functions.tenants(KEYS, 0)):
        if one.tenant == tenant:
            return one.num_queued, one.num_queued_bytes, one.num_running
    return 0, 0, 0


@pytest.mark.parametrize(
    "fields",
    [
        *({"slots": value} for value in ("abc", "nan", "inf", "-1", "1.5")),
        *({"lease_ms": value} for value in ("abc", "nan", "inf", "0", str(DAY_MS + 1))),
        *({"nonce": None}, {}),
        *("own", "session"),
    ],
    ids=str,
)
def test_a_broken_session_is_reaped(partition: Partition, fields: dict[str, str | None] | str) -> None:
    session, claimed = partition.job()
    key = KEYS.session(0, session)
    if isinstance(fields, str):
        name = KEYS.prefix(0) + f"{fields}:{session}"
        partition.raw.delete(name)
        partition.raw.set(name, "text")
    elif not fields:
        partition.raw.delete(key)
    for field, value in fields.items() if isinstance(fields, dict) else ():
        partition.raw.hdel(key, field) if value is None else partition.raw.hset(key, field, value)
    assert sweep(partition).repaired == 1
    assert partition.raw.zrange(KEYS.again(0, 1), 0, -1) == [b"a:j"]
    assert partition.status(claimed.ref) is JobStatus.QUEUED
    assert not partition.raw.exists(key, KEYS.own(0, session))
    assert partition.raw.zscore(KEYS.leases(0), str(session)) is None
    gone = [event for event in partition.run(functions.read_events(KEYS, 0, "0")) if event.kind == "gone"]
    assert [(event.session, event.status) for event in gone] == [(session, "broken")]
    assert [one.n for one in partition.claim(partition.hello("other"))] == [1]


def test_a_whole_session_is_left_alone(partition: Partition) -> None:
    _, claimed = partition.job()
    partition.hello("other", lease_ms=DAY_MS)
    assert sweep(partition).repaired == 0
    assert partition.status(claimed.ref) is JobStatus.RUNNING
    assert partition.raw.zcard(KEYS.leases(0)) == 2


@pytest.mark.parametrize("lease_ms", ["nan", "inf", "many", "-5", "1e300"])
def test_a_lease_that_is_none_renews_nothing(partition: Partition, lease_ms: str) -> None:
    session, claimed = partition.job()
    partition.raw.hset(KEYS.session(0, session), "lease_ms", lease_ms)
    for call in (functions.beat(KEYS, 0, session, "n"), step(session, "n", claimed, 1)):
        with pytest.raises(Fenced):
            partition.run(call)


@pytest.mark.parametrize("how", ["sweep", "reap", "bye"])
@pytest.mark.parametrize("field", ["grain", "mk", "status"])
def test_a_running_job_whose_hash_is_broken(partition: Partition, field: str, how: str) -> None:
    session, claimed = partition.job()
    partition.raw.hset(KEYS.job(claimed.ref), field, "?")
    partition.raw.expire(KEYS.job(claimed.ref), 99)  # the walk over the keys takes it for written off
    if how == "reap":
        partition.reap(session)
    elif how == "bye":
        partition.run(functions.bye(KEYS, 0, session, "n"))
    sweep(partition)
    assert end_of(partition, claimed.ref) == (FinishReason.FAILED, 1), "after the token that it has"
    assert letters(partition) == [("j", "broken")]
    (letter,) = partition.run(functions.dead_letters(KEYS, 0))
    assert letter.payload == claimed.payload
    assert partition.run(functions.job_status(KEYS, claimed.ref)) is JobStatus.FAILED
    assert num_counted(partition) == (0, 0, 0)
    assert not partition.raw.exists(KEYS.own(0, session), KEYS.running(0), KEYS.again(0, 1))
    assert 0 < partition.raw.pttl(KEYS.out(claimed.ref)) <= DAY_MS
    sweep(partition)
    assert len(letters(partition)) == 1


def test_a_waiting_job_whose_hash_is_broken(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(functions.fail(KEYS, 0, session, "n", claimed.ref, failure=FAILURE, retry=True))
    partition.raw.hset(KEYS.job(claimed.ref), "ttl", "?")
    partition.raw.expire(KEYS.job(claimed.ref), 99)
    partition.make_due("retry")
    sweep(partition)
    assert end_of(partition, claimed.ref) == (FinishReason.FAILED, 1)
    assert letters(partition) == [("j", "broken")]
    assert num_counted(partition) == (0, 0, 0)
    assert partition.run(functions.backlog(KEYS, 0)).retrying == 0


def test_a_broken_jobs_batch_that_is_no_name(partition: Partition) -> None:
    ref = partition.submit("j")
    partition.raw.hset(KEYS.job(ref), mapping={"batch": "a:b", "grain": "?"})
    partition.raw.sadd(KEYS.prefix(0) + "left:a:a:b", "j")
    partition.raw.hset(KEYS.prefix(0) + "batch:a:a:b", "closed", "1")
    assert partition.claim(partition.hello()) == []
    assert end_of(partition, ref) == (FinishReason.FAILED, 0)


def test_a_queued_job_whose_hash_is_broken_frees_its_tenants_cap(partition: Partition) -> None:
    partition.run(functions.tenant_set(KEYS, 0, "a", max_jobs=1))
    ref = partition.submit("j")
    partition.raw.hset(KEYS.job(ref), "grain", "?")
    assert partition.claim(partition.hello()) == []
    assert end_of(partition, ref) == (FinishReason.FAILED, 0)
    assert num_counted(partition) == (0, 0, 0)
    partition.submit("next")


def test_a_broken_job_whose_deadline_has_come(partition: Partition) -> None:
    ref = partition.submit("j")
    partition.raw.hset(KEYS.job(ref), "cost", "?")
    partition.raw.zadd(KEYS.due(0), {"deadline:a:j": 1, "deadline:rubbish": 1, "retry:": 1})
    sweep(partition)
    assert letters(partition) == [("j", "broken")]
    assert num_counted(partition) == (0, 0, 0)
    assert not partition.raw.exists(KEYS.queue(0, 1, "a"))
    assert partition.raw.keys("*rubbish*") == []


def test_a_job_that_has_ended_is_not_written_off(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(finish(session, "n", claimed))
    partition.raw.hset(KEYS.job(claimed.ref), "grain", "?")
    partition.raw.zadd(KEYS.running(0), {"a:j": 1})
    sweep(partition)
    assert letters(partition) == []
    partition.raw.zadd(KEYS.again(0, 1), {"a:j": 1})
    assert partition.claim(session) == []
    assert partition.run(functions.job_status(KEYS, claimed.ref)) is JobStatus.DONE
    assert not partition.raw.exists(KEYS.running(0))


def test_a_broken_job_that_nobody_counted_is_not_counted_off(partition: Partition) -> None:
    session, _ = partition.job()
    partition.raw.hset(KEYS.job(JobRef("a", "forged")), mapping={"status": "running"})
    partition.raw.xadd(KEYS.queue(0, 1, "a"), {"job": "forged"})
    sweep(partition)
    assert partition.claim(session) == []
    assert set(letters(partition)) == {("forged", "broken")}
    assert num_counted(partition)[2] == 1


def test_a_job_of_a_tenant_that_is_no_name_is_none(partition: Partition) -> None:
    ref = partition.submit("j")
    prefix = KEYS.prefix(0).encode()
    partition.raw.copy(KEYS.job(ref), prefix + b"job:\xff:j")
    partition.raw.xadd(prefix + b"in:1:\xff", {"job": "j"}, id=partition.raw.hget(KEYS.job(ref), "entry"))
    partition.raw.zadd(KEYS.ready(0, 1), {b"\xff": -1})
    assert [one.ref for one in partition.claim(partition.hello())] == [ref]


@pytest.mark.parametrize("mark", ["", "x", "1", ":", "nan:nan", "1:0", "0:1", "9" * 20 + ":1", b"\xff"])
def test_a_mark_that_is_none_is_made_again(partition: Partition, mark: str | bytes) -> None:
    session, claimed = partition.job()
    own = KEYS.own(0, session)
    for call in ("beat", "finish"):
        partition.raw.hset(own, "a:j", mark)
        if call == "beat":
            assert partition.run(functions.beat(KEYS, 0, session, "n")) == {claimed.ref: 1}
            assert partition.raw.hget(own, "a:j") == b"1:1"
        else:
            assert partition.run(finish(session, "n", claimed)) == [OK]


def test_a_mark_that_nobody_can_tell(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.raw.hset(KEYS.own(0, session), "a:j", "?")
    partition.raw.hset(KEYS.job(claimed.ref), "mk", "?")
    assert partition.run(finish(session, "n", claimed)) == [NOT_OURS]
    assert partition.run(functions.beat(KEYS, 0, session, "n")) == {}
    sweep(partition)
    assert end_of(partition, claimed.ref) == (FinishReason.FAILED, 1)


def test_a_mark_of_another_ones_job_is_not_made_again(partition: Partition) -> None:
    _, claimed = partition.job()
    other = partition.hello("other")
    partition.raw.hset(KEYS.own(0, other), "a:j", "?")
    assert partition.run(finish(other, "n", claimed)) == [NOT_OURS]
    assert partition.status(claimed.ref) is JobStatus.RUNNING


def test_a_session_of_another_type_is_none(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.raw.set(KEYS.session(0, session), "text")
    with pytest.raises(Fenced):
        partition.run(step(session, "n", claimed, 1))


def test_what_is_no_job_among_those_owned(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.raw.hset(
        KEYS.own(0, session), mapping={"rubbish": "?", b"\xff:\n": "1:1", ":": "", "a:none": "?"}
    )
    assert partition.run(functions.beat(KEYS, 0, session, "n")) == {claimed.ref: 1}
    partition.raw.hset(KEYS.own(0, session), "rubbish", "?")
    partition.reap(session)
    assert partition.status(claimed.ref) is JobStatus.QUEUED
