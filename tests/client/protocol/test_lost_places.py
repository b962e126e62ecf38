"""Jobs whose place in a queue or a set others wrote over: a sweep finds each by its hash, on both servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.partition import FAILURE, KEYS, OK, Partition, finish, sweep

from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.records import JobRef, Request, SessionId

REF = JobRef("a", "j")
FAR_MS = 8_000_000_000_000
QUEUE, AGAIN, DUE, RUNNING = KEYS.queue(0, 1, "a"), KEYS.again(0, 1), KEYS.due(0), KEYS.running(0)


def queued(partition: Partition) -> None:
    partition.submit("j")


def queued_again(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(functions.release(KEYS, 0, session, "n", [claimed.ref]))


def waiting(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(functions.fail(KEYS, 0, session, "n", claimed.ref, failure=FAILURE, retry=True))


def running(partition: Partition) -> None:
    partition.job()


STATES: dict[str, tuple[Callable[[Partition], None], str]] = {
    "queued": (queued, QUEUE),
    "again": (queued_again, AGAIN),
    "waiting": (waiting, DUE),
    "running": (running, RUNNING),
}
STATE = pytest.mark.parametrize("state", STATES)


def text(raw: Any, key: str) -> None:
    raw.set(key, "text")


def delete(raw: Any, key: str) -> None:
    raw.delete(key)


def sealed(raw: Any, key: str) -> None:
    raw.delete(key)
    if key == QUEUE:
        raw.xadd(key, {"x": "y"}, id=wire.SEAL_ID)


def others(raw: Any, key: str) -> None:
    """Something of the right type that names other jobs."""
    raw.delete(key)
    if key == QUEUE:
        raw.xadd(key, {"job": "other", "cost": "1"}, id=raw.hget(KEYS.job(REF), "entry"))
    else:
        raw.zadd(key, {"a:other": 1, "retry:a:other": FAR_MS})


@pytest.mark.parametrize("write", [text, delete, sealed, others])
@STATE
def test_a_job_that_nothing_names_is_found(
    partition: Partition, state: str, write: Callable[[Any, str], None]
) -> None:
    make, key = STATES[state]
    make(partition)
    write(partition.raw, key)
    for _ in range(3):
        sweep(partition)
    if state == "running":
        assert partition.raw.zscore(RUNNING, "a:j") > 0
        assert partition.status(REF) is JobStatus.RUNNING
        partition.reap(SessionId("w.1"))
    (claimed,) = partition.claim(partition.hello("other"))
    assert claimed.ref == REF
    assert partition.run(finish(partition.hello("other"), "n", claimed, 0)) == [OK]
    assert partition.status(REF) is JobStatus.DONE
    assert partition.run(functions.backlog(KEYS, 0)).retrying == 0
    assert [(one.num_queued, one.num_running) for one in partition.run(functions.tenants(KEYS, 0))] == []


@STATE
def test_a_job_that_nothing_names_ends_at_its_deadline(partition: Partition, state: str) -> None:
    make, key = STATES[state]
    make(partition)
    partition.raw.delete(key, DUE)
    partition.raw.hset(KEYS.job(REF), "deadline", 1)
    assert sweep(partition).expired == 1
    assert partition.status(REF) is JobStatus.EXPIRED
    assert not partition.raw.exists(QUEUE, AGAIN, DUE, RUNNING)


@STATE
def test_a_deadline_that_was_lost_is_noted_again(partition: Partition, state: str) -> None:
    make, _ = STATES[state]
    make(partition)
    at = partition.raw.zscore(DUE, "deadline:a:j")
    partition.raw.delete(DUE)
    sweep(partition)
    assert partition.raw.zscore(DUE, "deadline:a:j") == at


def test_a_job_without_a_deadline_gets_none(partition: Partition) -> None:
    partition.run(functions.submit(KEYS, REF, Request(prompt="x")))
    assert sweep(partition).expired == 0
    assert not partition.raw.exists(DUE)


@STATE
def test_a_job_in_its_place_is_left_there(partition: Partition, state: str) -> None:
    make, _ = STATES[state]
    make(partition)
    before = partition.contents()
    for _ in range(2):
        assert sweep(partition) == functions.Swept(retried=0, expired=0, repaired=0, more=False)
    now = partition.contents()
    for found in (before, now):
        for key in (KEYS.wfq(0, 0), KEYS.wfq(0, 1), RUNNING):  # where the walks are, and what they tidy up
            found.pop(key, None)
    assert now == before


def test_a_job_that_has_ended_is_not_found(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(finish(session, "n", claimed))
    assert sweep(partition).repaired == 0
    assert partition.status(REF) is JobStatus.DONE
    assert partition.claim(session) == []


def test_a_wait_that_somebody_has_made_long_is_over(partition: Partition) -> None:
    session, other = partition.job("other")
    partition.run(functions.fail(KEYS, 0, session, "n", other.ref, failure=FAILURE, retry=True))
    waiting(partition)
    partition.raw.zadd(DUE, {"retry:a:j": FAR_MS})
    assert sweep(partition).retried == 1
    assert partition.run(functions.backlog(KEYS, 0)).retrying == 1, "the other one"
    assert [one.ref for one in partition.claim(partition.hello())] == [REF]


def test_one_that_never_ran_stands_behind_what_its_tenant_has_waiting(partition: Partition) -> None:
    """Whoever loses a queue of its own gets nothing from it: not a place before others', and no job free."""
    for job_id in ("j", "k"):
        partition.submit(job_id)
    partition.raw.delete(QUEUE)
    for job_id in ("l", "m"):
        partition.submit(job_id)
    partition.submit("other", tenant="b")
    sweep(partition)
    assert partition.raw.zcard(AGAIN) == 0
    session = partition.hello()
    order = [one.ref.job_id for one in partition.claim(session)]
    assert order[:3] == ["l", "other", "m"]
    assert sorted(order[3:]) == ["j", "k"]


def test_a_lost_job_whose_hash_is_broken_is_written_off(partition: Partition) -> None:
    ref = partition.submit("j")
    partition.raw.hset(KEYS.job(ref), "grain", "?")
    partition.raw.delete(QUEUE)
    for _ in range(2):
        sweep(partition)
    assert partition.status(ref) is JobStatus.FAILED
    assert [one.reason for one in partition.run(functions.dead_letters(KEYS, 0))] == ["broken"]
    assert partition.raw.zcard(DUE) == 0


def test_a_lost_job_whose_status_is_broken_is_counted_off(partition: Partition) -> None:
    running(partition)
    partition.raw.hset(KEYS.job(REF), "status", "?")
    partition.raw.delete(RUNNING)
    sweep(partition)
    assert partition.run(functions.job_status(KEYS, REF)) is JobStatus.FAILED
    assert partition.run(functions.tenants(KEYS, 0)) == []


def test_what_is_no_hash_is_told_of_once(partition: Partition) -> None:
    partition.raw.set(KEYS.job(REF), "text")
    for _ in range(3):
        sweep(partition)
    assert len(partition.run(functions.dead_letters(KEYS, 0))) == 1


def test_a_sweep_comes_again_at_once_where_it_found_something(partition: Partition) -> None:
    for number in range(1000):
        partition.submit(f"j{number}")
    partition.raw.delete(QUEUE)
    repaired = num_sweeps = 0
    while repaired < 1000:
        done = sweep(partition)
        assert done.repaired <= 200, "a sweep is bounded"
        assert done.more or not done.repaired
        repaired += done.repaired
        num_sweeps += 1
        assert num_sweeps < 50
    assert partition.raw.xlen(QUEUE) == 1000
    assert sum(one.num_queued for one in partition.run(functions.tenants(KEYS, 0))) == 1000


@pytest.mark.parametrize("entry", [f"{'9' * 20}-0", f"0-{'9' * 20}"])
def test_an_entry_that_no_stream_can_have(partition: Partition, entry: str) -> None:
    """Redis takes no such id, not even for looking it up."""
    session, claimed = partition.job()
    partition.raw.hset(KEYS.job(claimed.ref), "entry", entry)
    partition.submit("good", tenant="b")
    sweep(partition)
    assert partition.status(claimed.ref) is JobStatus.FAILED
    assert [one.ref.job_id for one in partition.claim(session)] == ["good"]
