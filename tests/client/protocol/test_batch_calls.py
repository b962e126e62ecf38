"""The end of a batch: one entry, whatever ends its jobs and in whatever order, on both servers."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from thinkstream_client.errors import Fenced
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason, JobFailure, JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import BatchEnd, FinishRow, StepReply
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

KEYS, BATCH = Keys(), "b"
FAILURE = JobFailure(code="JobFailed", message="no")
ENDS = (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED)


class Partition:
    """A server, and short words for what happens to the jobs of one batch."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(RedisSettings(url))
        self.run = self._connection.run
        self.raw: Any = redis.Redis.from_url(url, decode_responses=True)
        self.num_sessions = 0

    def submit(self, *names: str, deadline_ms: int | None = None) -> list[JobRef]:
        refs = [JobRef("a", name) for name in names]
        for ref in refs:
            call = functions.submit(KEYS, ref, Request(prompt="hi"), deadline_ms=deadline_ms, batch=BATCH)
            self.run(call)
        return refs

    def session(self) -> SessionId:
        self.num_sessions += 1
        session = SessionId(f"w.{self.num_sessions}")
        self.run(functions.hello(KEYS, 0, session, "n", replica="w", slots=99, lease_ms=60_000, info={}))
        return session

    def finish(self, session: SessionId, ref: JobRef, mk: int = 1) -> StepReply:
        row = FinishRow(
            ref=ref,
            expected_len=mk,
            last_entry=None,
            terminal=wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=0)),
            reason=FinishReason.STOP,
            num_tokens=0,
            cost=1,
        )
        return self.run(functions.finish(KEYS, 0, session, "n", [row]))[0]

    def fail(self, session: SessionId, ref: JobRef, *, retry: bool = False) -> None:
        self.run(functions.fail(KEYS, 0, session, "n", ref, failure=FAILURE, retry=retry))

    def close_batch(self) -> None:
        self.run(functions.batch_close(KEYS, 0, "a", BATCH))

    def end(self) -> tuple[int, int, int, int] | None:
        """Jobs done, failed, cancelled and expired once the batch is over; there is one event of it."""
        found: BatchEnd | None = self.run(functions.read_batch_end(KEYS, 0, "a", BATCH))
        assert len(self.events()) == (0 if found is None else 1)
        return None if found is None else (found.done, found.failed, found.cancelled, found.expired)

    def events(self) -> list[functions.Event]:
        events = self.run(functions.read_events(KEYS, 0, "0"))
        return [one for one in events if one.kind == "batch"]

    def close(self) -> None:
        self._connection.close()
        self.raw.close()


@pytest.fixture
def partition(any_redis_url: str) -> Iterator[Partition]:
    partition = Partition(any_redis_url)
    yield partition
    partition.close()


def test_a_batch_ends_with_its_last_job_once_it_is_closed(partition: Partition) -> None:
    done, dead, cancelled, late = partition.submit("done", "dead", "cancelled", "again")
    partition.submit("expired", deadline_ms=1)
    session = partition.session()
    time.sleep(0.005)
    assert len(partition.run(functions.claim(KEYS, 0, session, 9))) == 4, "one has expired"
    partition.run(functions.cancel(KEYS, cancelled))
    partition.fail(session, dead)
    partition.finish(session, done)
    partition.run(functions.release(KEYS, 0, session, "n", [late]))
    partition.run(functions.claim(KEYS, 0, session, 9))
    partition.finish(session, late, mk=2)
    assert partition.end() is None, "there may be more to come"
    partition.close_batch()
    assert partition.end() == (2, 1, 1, 1)
    partition.close_batch()
    partition.submit("done")
    partition.run(functions.cancel(KEYS, done))
    assert partition.end() == (2, 1, 1, 1), "nothing ends twice"
    left = [KEYS.batch_left(0, "a", BATCH), KEYS.batches(0)]
    assert partition.raw.exists(*left) == 0
    assert partition.raw.ttl(KEYS.batch(0, "a", BATCH)) > 86_400
    assert partition.raw.ttl(KEYS.batch_end(0, "a", BATCH)) > 86_400


def test_a_batch_closed_first_ends_with_a_death(partition: Partition) -> None:
    (ref,) = partition.submit("job")
    partition.close_batch()
    for _ in range(3):
        session = partition.session()
        partition.run(functions.claim(KEYS, 0, session, 1))
        assert partition.end() is None
        partition.run(functions.beat(KEYS, 0, session, "n", alone=ref))
        partition.run(functions.reap(KEYS, 0, session))
    assert partition.end() == (0, 1, 0, 0)


def test_a_batch_without_jobs_ends_when_closed(partition: Partition) -> None:
    assert not partition.run(functions.batch_exists(KEYS, 0, "a", BATCH))
    partition.close_batch()
    assert partition.end() == (0, 0, 0, 0)


def test_more_jobs_open_it_again(partition: Partition) -> None:
    partition.close_batch()
    (ref,) = partition.submit("more")
    assert partition.run(functions.read_batch_end(KEYS, 0, "a", BATCH)) is None
    partition.run(functions.cancel(KEYS, ref))
    assert partition.run(functions.read_batch_end(KEYS, 0, "a", BATCH)) is None
    partition.close_batch()
    assert partition.run(functions.read_batch_end(KEYS, 0, "a", BATCH)) is not None
    assert len(partition.events()) == 2


def test_a_batch_that_nobody_closes_leaves_nothing(partition: Partition) -> None:
    (ref,) = partition.submit("job")
    assert partition.raw.ttl(KEYS.batch(0, "a", BATCH)) == -1
    partition.run(functions.cancel(KEYS, ref))
    assert partition.raw.ttl(KEYS.batch(0, "a", BATCH)) > 86_400
    partition.run(functions.sweep(KEYS, 0))
    assert partition.raw.exists(KEYS.batches(0)) == 0


def test_sweep_takes_out_what_somebody_has_deleted(partition: Partition) -> None:
    refs = partition.submit(*(f"j{number}" for number in range(100)))
    partition.close_batch()
    for ref in refs[:99]:
        partition.raw.delete(KEYS.job(ref))
    for _ in range(8):
        partition.run(functions.sweep(KEYS, 0))
    assert partition.end() is None, "one lives"
    partition.run(functions.cancel(KEYS, refs[99]))
    assert partition.end() == (0, 99, 1, 0)


def test_a_hash_that_is_broken_ends_in_its_batch(partition: Partition) -> None:
    (ref,) = partition.submit("job")
    partition.close_batch()
    partition.raw.hdel(KEYS.job(ref), "grain")
    partition.run(functions.claim(KEYS, 0, partition.session(), 1))
    for _ in range(2):
        partition.run(functions.sweep(KEYS, 0))
    assert partition.end() == (0, 1, 0, 0)


@pytest.mark.parametrize("seed", range(2))
def test_one_end_whatever_happens(partition: Partition, seed: int) -> None:
    chance = random.Random(seed)
    refs: list[JobRef] = []
    owned: dict[JobRef, tuple[SessionId, int]] = {}
    session = partition.session()
    while partition.end() is None:
        if len(refs) < 60:
            refs += partition.submit(f"j{len(refs)}", deadline_ms=chance.choice((None, None, 2)))
        else:
            partition.close_batch()
        for one in partition.run(functions.claim(KEYS, 0, session, chance.randint(0, 3))):
            owned[one.ref] = (session, one.mk)
        if chance.random() < 0.1:
            partition.run(functions.reap(KEYS, 0, session))
            session = partition.session()
        for ref, (owner, mk) in chance.sample(sorted(owned.items()), min(2, len(owned))):
            del owned[ref]
            with contextlib.suppress(Fenced):
                if chance.random() < 0.5:
                    partition.finish(owner, ref, mk)
                else:
                    partition.fail(owner, ref, retry=chance.random() < 0.5)
        if chance.random() < 0.2:
            partition.run(functions.cancel(KEYS, chance.choice(refs)))
        if chance.random() < 0.3:
            time.sleep(0.002)
            partition.raw.zadd(KEYS.due(0), dict.fromkeys(_retries(partition), 1))
            partition.run(functions.sweep(KEYS, 0))
    ended = partition.end()
    assert ended is not None and sum(ended) == 60
    found = [partition.run(functions.job_status(KEYS, ref)) for ref in refs]
    assert all(status.is_terminal for status in found)
    assert [found.count(status) for status in ENDS] == list(ended)


def _retries(partition: Partition) -> list[str]:
    waiting = partition.raw.zrange(KEYS.due(0), 0, -1)
    return [one for one in waiting if one.startswith("retry:")] or ["retry:a:nobody"]
