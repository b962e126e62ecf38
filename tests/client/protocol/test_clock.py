"""The server's clock goes back: what carries a time of before is neither alive nor seen to for that long."""

from __future__ import annotations

import time

import pytest
from tests.support.partition import FAILURE, KEYS, OK, Partition, step, sweep

from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.records import JobRef, Request, SessionId

JUMP_MS = 600_000


def go_back(partition: Partition, key: str) -> None:
    """Moves the times in a sorted set to where the jump leaves them."""
    for member, at in partition.raw.zrange(key, 0, -1, withscores=True):
        partition.raw.zadd(key, {member: at + JUMP_MS})


def left_ms(partition: Partition, session: SessionId) -> int:
    shown: list[functions.SessionInfo] = partition.run(functions.sessions(KEYS, 0))
    return next(one.lease_left_ms for one in shown if one.session == session)


def test_a_dead_session_is_reaped_one_lease_later(partition: Partition) -> None:
    ref, session = partition.submit("j"), partition.hello(lease_ms=50)
    assert len(partition.claim(session)) == 1
    go_back(partition, KEYS.leases(0))
    assert sweep(partition).repaired == 0
    assert left_ms(partition, session) <= 50
    time.sleep(0.06)
    partition.reap()
    assert partition.status(ref) is JobStatus.QUEUED
    assert partition.run(functions.sessions(KEYS, 0)) == []
    assert [one.ref for one in partition.claim(partition.hello("other"))] == [ref]


@pytest.mark.parametrize("renew", ["beat", "step"])
def test_a_living_session_keeps_its_jobs(partition: Partition, renew: str) -> None:
    session, claimed = partition.job()
    go_back(partition, KEYS.leases(0))
    sweep(partition)
    assert 0 < left_ms(partition, session) <= 60_000
    go_back(partition, KEYS.leases(0))
    if renew == "beat":
        assert partition.run(functions.beat(KEYS, 0, session, "n")) == {claimed.ref: 1}
    else:
        assert partition.run(step(session, "n", claimed, 1)) == [OK]
    assert 0 < left_ms(partition, session) <= 60_000
    partition.reap()
    assert partition.status(claimed.ref) is JobStatus.RUNNING


def test_a_lease_that_ends_soon_is_not_renewed_by_a_sweep(partition: Partition) -> None:
    session, _ = partition.job()
    partition.raw.zincrby(KEYS.leases(0), -50_000, session)
    sweep(partition)
    assert left_ms(partition, session) <= 10_000


def test_a_lease_that_somebody_has_made_long_is_as_long_as_the_others(partition: Partition) -> None:
    session, claimed = partition.job()
    for at in ("9e15", "inf"):
        partition.raw.zadd(KEYS.leases(0), {str(session): at})
        assert sweep(partition).repaired == 0
        assert 0 < left_ms(partition, session) <= 60_000
    assert partition.status(claimed.ref) is JobStatus.RUNNING


def test_each_running_job_is_looked_at(partition: Partition) -> None:
    """More than one sweep looks at: those that it has come to wait until it has come to the rest."""
    refs = [partition.submit(f"j{number:02}") for number in range(40)]
    session = partition.hello(slots=40)
    while partition.claim(session):
        pass
    partition.raw.hdel(KEYS.own(0, session), "a:j39")
    go_back(partition, KEYS.running(0))
    partition.raw.zincrby(KEYS.running(0), 99, "a:j39")
    assert [sweep(partition).repaired for _ in range(2)] == [0, 1]
    assert partition.status(refs[39]) is JobStatus.QUEUED


def test_a_job_to_be_tried_again_waits_no_longer(partition: Partition) -> None:
    """Its time comes at once, whatever else is due later; that of a deadline is the job's own."""
    session, claimed = partition.job()
    for number in range(400):
        partition.run(
            functions.submit(KEYS, JobRef("a", f"d{number}"), Request(prompt="x"), deadline_ms=900_000)
        )
    call = functions.fail(KEYS, 0, session, "n", claimed.ref, failure=FAILURE, retry=True)
    assert partition.run(call) is OK
    go_back(partition, KEYS.due(0))
    swept = [sweep(partition) for _ in range(4)]
    assert (sum(one.retried for one in swept), sum(one.expired for one in swept)) == (1, 0)
    assert partition.status(claimed.ref) is JobStatus.QUEUED


def test_each_batch_is_looked_at(partition: Partition) -> None:
    for number in range(10):
        ref = JobRef("a", f"j{number}")
        partition.run(functions.submit(KEYS, ref, Request(prompt="x"), batch=f"b{number}"))
        partition.run(functions.batch_close(KEYS, 0, "a", f"b{number}"))
    partition.raw.delete(KEYS.job(JobRef("a", "j9")))
    go_back(partition, KEYS.batches(0))
    partition.raw.zincrby(KEYS.batches(0), 99, "a:b9")
    for _ in range(2):
        sweep(partition)
    assert partition.raw.exists(KEYS.batch_end(0, "a", "b9"))
