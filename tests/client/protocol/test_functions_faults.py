"""What the functions do with deaths, rubbish and lost keys, on both servers."""

from __future__ import annotations

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
from thinkstream_client.protocol.functions import Claimed, StepReply, StepRow
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

KEYS = Keys()
REQUEST = Request(prompt="hi", tags=("t",))


class Queue:
    """A server and short words for what the tests do with it."""

    def __init__(self, url: str) -> None:
        self.run = Connection(RedisSettings(url)).run
        self.raw: Any = redis.Redis.from_url(url)
        self._num_sessions = 0

    def submit(self, *names: str, ttl_ms: int = 60_000) -> list[JobRef]:
        refs = [JobRef("a", name) for name in names]
        for ref in refs:
            self.run(functions.submit(KEYS, ref, REQUEST, result_ttl_ms=ttl_ms))
        return refs

    def hello(self) -> SessionId:
        self._num_sessions += 1
        session = SessionId(f"w.{self._num_sessions}")
        self.run(functions.hello(KEYS, 0, session, "n", replica="w", slots=100, lease_ms=5000, info={}))
        return session

    def claim(self, session: SessionId) -> dict[str, Claimed]:
        return {one.ref.job_id: one for one in self.run(functions.claim(KEYS, 0, session, 100))}

    def claim_and_die(
        self, *, alone: JobRef | None = None, steps: tuple[JobRef, ...] = ()
    ) -> dict[str, Claimed]:
        """One session's life: it takes all jobs, brings a token to some, and dies."""
        session = self.hello()
        claimed = self.claim(session)
        for ref in steps:
            one = claimed[ref.job_id]
            row = StepRow(ref, one.n + one.mk, wire.encode_entry([1], 0, ""), one.mk, 1)
            assert self.run(functions.step(KEYS, 0, session, "n", [row])) == [StepReply.OK]
        self.run(functions.beat(KEYS, 0, session, "n", alone=alone))
        self.run(functions.reap(KEYS, 0, session))
        return claimed

    def finish(self, session: SessionId, one: Claimed, n: int) -> StepReply:
        row = functions.FinishRow(
            ref=one.ref,
            expected_len=one.n + one.mk,
            last_entry=None,
            terminal=wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=n)),
            reason=FinishReason.STOP,
            num_tokens=n,
            cost=9,
        )
        return self.run(functions.finish(KEYS, 0, session, "n", [row]))[0]

    def info(self, ref: JobRef) -> functions.JobInfo:
        return self.run(functions.job_info(KEYS, ref))

    def end_of(self, ref: JobRef) -> Finish:
        entries = self.run(functions.read_results(KEYS, {ref: 0}, block_ms=None, count=None))[ref]
        assert isinstance(entries[-1], wire.Terminal)
        return entries[-1].finish

    def dead(self) -> list[tuple[str, str]]:
        return [(one.ref.job_id, one.reason) for one in self.run(functions.dead_letters(KEYS, 0))][::-1]


@pytest.fixture
def queue(any_redis_url: str) -> Iterator[Queue]:
    queue = Queue(any_redis_url)
    yield queue
    queue.raw.close()


def test_death_without_a_name_makes_suspects(queue: Queue) -> None:
    still, moving = queue.submit("still", "moving")
    queue.claim_and_die(steps=(moving,))
    assert [queue.info(ref).suspect for ref in (still, moving)] == [True, False]
    for _ in range(5):
        queue.claim_and_die()
    assert queue.info(still).attempts == 0
    assert queue.info(still).status is JobStatus.QUEUED


def test_what_kills_before_it_is_ever_named_is_counted_in_the_end(queue: Queue) -> None:
    (bad,) = queue.submit("bad")
    for attempts in (*[0] * 6, 1, 2):
        queue.claim_and_die()
        assert queue.info(bad).attempts == attempts
    queue.claim_and_die()
    assert queue.info(bad).status is JobStatus.FAILED
    assert queue.dead() == [("bad", "WorkerDied")]


def test_progress_clears_what_was_not_named(queue: Queue) -> None:
    (job,) = queue.submit("job")
    for _ in range(6):
        queue.claim_and_die()
    queue.claim_and_die(steps=(job,))
    queue.claim_and_die()
    assert queue.info(job).attempts == 0


def test_three_deaths_by_name_are_the_end(queue: Queue) -> None:
    bad, good = queue.submit("bad", "good")
    queue.claim_and_die()
    for attempts in (1, 2):
        claimed = queue.claim_and_die(alone=bad)
        assert claimed["bad"].suspect
        assert (queue.info(bad).attempts, queue.info(good).attempts) == (attempts, 0)
    queue.claim_and_die(alone=bad)
    finish = queue.end_of(bad)
    assert finish.reason is FinishReason.FAILED
    assert finish.error == JobFailure(
        code="WorkerDied", message="its worker died each time it was tried", data={"attempts": 3}
    )
    assert queue.dead() == [("bad", "WorkerDied")]
    assert queue.info(bad).attempts == 3
    assert list(queue.claim(queue.hello())) == ["good"]


def test_progress_resets_the_count(queue: Queue) -> None:
    (ref,) = queue.submit("j")
    for _ in range(2):
        queue.claim_and_die(alone=ref)
    assert queue.info(ref).attempts == 2
    queue.claim_and_die(alone=ref, steps=(ref,))
    assert (queue.info(ref).attempts, queue.info(ref).suspect) == (0, False)
    queue.claim_and_die(alone=ref)
    assert (queue.info(ref).attempts, queue.info(ref).n, queue.info(ref).claims) == (1, 1, 4)


def test_rubbish_in_a_queue_stops_nothing(queue: Queue) -> None:
    name = KEYS.queue(0, 1, "a")
    queue.submit("first")
    for fields in (
        {"x": "y"},
        {"job": b"\xff\xfe"},
        {"job": "nowhere"},
        {"job": "first"},
        {"job": "a:b"},
        {"job": "x" * 300},
        {"payload": b"\xc1" * (2 << 20)},
    ):
        queue.raw.xadd(name, fields)
    queue.submit("last")
    session = queue.hello()
    assert list(queue.claim(session)) == ["first", "last"]
    assert [reason for _, reason in queue.dead()] == [
        "not a job", "not a job", "missing", "stale", "not a job", "missing", "not a job",
    ]  # fmt: skip
    assert queue.run(functions.backlog(KEYS, 0)).dead == 7
    assert not queue.raw.exists(name)
    assert len(queue.run(functions.dead_letters(KEYS, 0))[0].payload) <= 4096


def test_rubbish_is_cleared_in_bounded_calls(queue: Queue) -> None:
    for _ in range(100):
        queue.raw.xadd(KEYS.queue(0, 1, "a"), {"x": "y"})
    queue.submit("j")
    session = queue.hello()
    assert list(queue.claim(session)) == []
    assert list(queue.claim(session)) == ["j"]


def test_sweep_finds_queues_that_submit_did_not_write(queue: Queue) -> None:
    queue.raw.xadd(KEYS.queue(0, 2, "stranger"), {"payload": b"\xc1" * 100})
    queue.raw.set(KEYS.queue(0, 0, "oddity"), "text")
    for _ in range(3):
        queue.run(functions.sweep(KEYS, 0))
    queue.claim(queue.hello())
    assert queue.dead() == [("", "queue is not a stream"), ("", "not a job")]
    assert not queue.raw.keys("ts:{0}:in:*")


def test_jobs_that_were_tampered_with(queue: Queue) -> None:
    refs = queue.submit("no-hash", "no-payload", "other-type", "no-grain", "sealed", "stream-is-text", "good")
    gone, empty, other, half, sealed, text, good = refs
    queue.raw.delete(KEYS.job(gone), KEYS.job(other))
    queue.raw.hdel(KEYS.job(empty), "payload")
    queue.raw.set(KEYS.job(other), "text")
    queue.raw.hset(KEYS.job(half), "grain", "many")
    queue.raw.xadd(KEYS.out(sealed), {"f": b"?"}, id=wire.SEAL_ID)
    queue.raw.set(KEYS.out(text), "text")
    assert list(queue.claim(queue.hello())) == [good.job_id]
    assert [name for name, _ in queue.dead()] == [ref.job_id for ref in refs[:-1]]
    for ref in (empty, half):
        assert queue.end_of(ref).reason is FinishReason.FAILED
    for ref in (empty, half, sealed, text):
        assert queue.run(functions.job_status(KEYS, ref)) is JobStatus.FAILED


def test_a_stream_of_another_type_harms_its_own_row_alone(queue: Queue) -> None:
    text, good = queue.submit("text", "good")
    session = queue.hello()
    claimed = queue.claim(session)
    queue.raw.delete(KEYS.out(text))
    queue.raw.set(KEYS.out(text), "text")
    rows = [StepRow(ref, 1, wire.encode_entry([1], 0, ""), 1, 1) for ref in (text, good)]
    replies = queue.run(functions.step(KEYS, 0, session, "n", rows))
    assert replies == [StepReply.CAS, StepReply.OK]
    assert queue.finish(session, claimed["text"], 0) is StepReply.CAS
    assert queue.run(functions.cancel(KEYS, text)) is JobStatus.CANCELLED


def test_broken_payload_goes_to_the_worker(queue: Queue) -> None:
    (ref,) = queue.submit("j")
    queue.raw.hset(KEYS.job(ref), "payload", b"\xc1")
    assert queue.claim(queue.hello())["j"].payload == b"\xc1"


def test_a_queue_and_a_set_of_another_type(queue: Queue) -> None:
    queue.submit("j")
    queue.raw.set(KEYS.queue(0, 1, "text"), "text")
    queue.raw.zadd(KEYS.ready(0, 1), {"text": -5, "no-queue": -4})
    queue.raw.zadd(KEYS.again(0, 1), {"rubbish": 1, "a:nowhere": 2})
    assert list(queue.claim(queue.hello())) == ["j"]
    assert queue.raw.zcard(KEYS.ready(0, 1)) == queue.raw.zcard(KEYS.again(0, 1)) == 0


def test_lost_stream_of_a_started_job(queue: Queue) -> None:
    (ref,) = queue.submit("j")
    queue.claim_and_die(steps=(ref,))
    queue.raw.delete(KEYS.out(ref))
    assert queue.claim(queue.hello()) == {}
    assert queue.end_of(ref).reason is FinishReason.FAILED


def test_sweep_repairs_what_no_living_session_owns(queue: Queue) -> None:
    first, second, third = queue.submit("first", "second", "third")
    session = queue.hello()
    queue.claim(session)
    assert queue.run(functions.sweep(KEYS, 0)).repaired == 0
    queue.raw.hdel(KEYS.own(0, session), "a:first")
    queue.raw.hset(KEYS.job(second), "owner", "nobody")
    queue.raw.delete(KEYS.job(third))
    assert queue.run(functions.sweep(KEYS, 0)).repaired == 2
    assert queue.raw.zcard(KEYS.running(0)) == 0
    assert {queue.info(ref).status for ref in (first, second)} == {JobStatus.QUEUED}
    assert list(queue.claim(queue.hello())) == ["first", "second"]


@pytest.mark.parametrize("what", ["vanished", "of another life", "no hash"])
def test_a_lost_hash_gives_its_slot_back(queue: Queue, what: str) -> None:
    lost, kept = queue.submit("lost", "kept")
    session = queue.hello()
    queue.claim(session)
    queue.raw.delete(KEYS.job(lost))
    if what == "of another life":
        queue.submit("lost")
    elif what == "no hash":
        queue.raw.set(KEYS.job(lost), "text")
    assert queue.run(functions.beat(KEYS, 0, session, "n")) == {kept: 1}
    assert queue.raw.hkeys(KEYS.own(0, session)) == [b"a:kept"]
    assert queue.raw.hget(KEYS.usage(0), "a:running") == b"1"


def test_many_ends_do_not_delay_a_deadline(queue: Queue) -> None:
    (ref,) = queue.submit("j")
    queue.raw.zadd(KEYS.ended(0), {f"a:old-{i}:t": i for i in range(300)})
    queue.raw.zadd(KEYS.due(0), {"deadline:a:j": 1000})
    first = queue.run(functions.sweep(KEYS, 0))
    assert (first.expired, first.more) == (1, True)
    assert queue.end_of(ref).reason is FinishReason.EXPIRED
    assert not queue.run(functions.sweep(KEYS, 0)).more
    assert queue.raw.zrangebyscore(KEYS.ended(0), "-inf", 1_000_000) == []


def test_result_and_hash_expire_and_are_forgotten(queue: Queue) -> None:
    (ref,) = queue.submit("j", ttl_ms=40)
    session = queue.hello()
    queue.finish(session, queue.claim(session)["j"], 0)
    for tag in (None, "t"):
        assert [one.ref for one in queue.run(functions.list_jobs(KEYS, 0, "a", tag=tag))] == [ref]
    assert queue.run(functions.list_jobs(KEYS, 0, "a", tag="other")) == []
    assert 86_400_000 < queue.raw.pttl(KEYS.job(ref)) <= 86_400_040
    time.sleep(0.06)
    assert not queue.raw.exists(KEYS.out(ref))
    assert queue.info(ref).status is JobStatus.DONE
    # A day later.
    queue.raw.delete(KEYS.job(ref))
    queue.raw.zadd(KEYS.ended(0), {"a:j:t": 1}, xx=True)
    queue.run(functions.sweep(KEYS, 0))
    queue.run(functions.bye(KEYS, 0, session, "n"))
    left = {key.decode() for key in queue.raw.scan_iter()}
    assert left <= {KEYS.events(0), KEYS.wfq(0, 0), KEYS.wfq(0, 1)}


def test_nothing_is_left_of_many_ends(queue: Queue) -> None:
    session = queue.hello()
    queue.submit(*(f"j{i}" for i in range(9)))
    claimed = list(queue.claim(session).values())
    queue.submit(*(f"q{i}" for i in range(3)))
    for one in claimed[:3]:
        queue.finish(session, one, 0)
    failure = JobFailure(code="JobFailed", message="")
    for one in claimed[3:6]:
        queue.run(functions.fail(KEYS, 0, session, "n", one.ref, failure=failure, retry=one is claimed[3]))
    for one in claimed[3:9]:
        queue.run(functions.cancel(KEYS, one.ref))
    for i in range(3):
        queue.run(functions.cancel(KEYS, JobRef("a", f"q{i}")))
    for key in (
        KEYS.running(0),
        KEYS.own(0, session),
        KEYS.usage(0),
        KEYS.ready(0, 1),
        KEYS.queue(0, 1, "a"),
    ):
        assert not queue.raw.exists(key), key
    assert queue.run(functions.backlog(KEYS, 0)).retrying == 0
    assert not queue.raw.exists(KEYS.due(0))
    assert queue.raw.zcard(KEYS.ended(0)) == 12
    assert all(queue.raw.pttl(key) != -1 for key in queue.raw.scan_iter("*:job:*"))
    assert all(queue.raw.pttl(key) != -1 for key in queue.raw.scan_iter("*:out:*"))


def test_confirm(queue: Queue) -> None:
    (ref,) = queue.submit("j")
    queue.run(functions.confirm(KEYS, ref))
    assert queue.raw.hexists(KEYS.job(ref), "confirmed")


@pytest.mark.parametrize("slots", ["abc", "nan", "inf", "-1", "1.5", b"\xff"])
def test_a_broken_session_is_given_nothing_and_stops_nobody(queue: Queue, slots: str | bytes) -> None:
    queue.submit("j")
    broken, sound = queue.hello(), queue.hello()
    queue.raw.hset(KEYS.session(0, broken), "slots", slots)
    queue.raw.zadd(KEYS.leases(0), {"text": 9e15, "owns-text": 9e15})
    queue.raw.set(KEYS.session(0, SessionId("text")), "text")
    queue.raw.hset(KEYS.session(0, SessionId("owns-text")), "slots", 5)
    queue.raw.set(KEYS.own(0, SessionId("owns-text")), "text")
    free = {one.session: one.free_slots for one in queue.run(functions.sessions(KEYS, 0))}
    assert free == {broken: 0, sound: 100}
    for session in (broken, SessionId("text"), SessionId("owns-text")):
        with pytest.raises(Fenced):
            queue.claim(session)
    assert list(queue.claim(sound)) == ["j"]
