"""The functions in Redis, through their builders, on both servers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis

from thinkstream_client.errors import (
    ConfigError,
    Conflict,
    Fenced,
    InvalidRequest,
    JobNotFound,
    QueueFull,
    RecordInvalid,
)
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Claimed, FinishRow, StepReply, StepRow, Swept
from thinkstream_client.protocol.wire import RawEntry
from thinkstream_client.records import (
    Finish,
    FinishReason,
    JobFailure,
    JobRef,
    JobStatus,
    Request,
    SamplingParams,
    SessionId,
)
from thinkstream_client.settings import RedisSettings

KEYS = Keys()
OK, CAS, SEALED = StepReply.OK, StepReply.CAS, StepReply.SEALED
FAILURE = JobFailure(code="RecordInvalid", message="no", data={"limit": 3})


class Queue:
    """A server and short words for what the tests do with it."""

    def __init__(self, url: str) -> None:
        self.run = Connection(RedisSettings(url)).run
        self.raw: Any = redis.Redis.from_url(url)

    def submit(
        self,
        name: str,
        *,
        tenant: str = "a",
        priority: int = 1,
        deadline_ms: int | None = None,
        request: Request | None = None,
        ttl_ms: int = 60_000,
    ) -> JobRef:
        ref = JobRef(tenant, name)
        request = request or Request(prompt="hi", sampling=SamplingParams(max_tokens=9))
        call = functions.submit(
            KEYS, ref, request, priority=priority, deadline_ms=deadline_ms, result_ttl_ms=ttl_ms
        )
        assert self.run(call).created
        return ref

    def hello(self, name: str = "w", *, slots: int = 100, lease_ms: int = 5000) -> SessionId:
        session = SessionId(f"{name}.1")
        self.run(
            functions.hello(
                KEYS, 0, session, "n", replica=name, slots=slots, lease_ms=lease_ms, info={"pid": "7"}
            )
        )
        return session

    def claim(self, session: SessionId, k: int = 100) -> list[Claimed]:
        return self.run(functions.claim(KEYS, 0, session, k))

    def names(self, session: SessionId, k: int = 100) -> str:
        return " ".join(one.ref.job_id for one in self.claim(session, k))

    def step(self, session: SessionId, ref: JobRef, expected_len: int, *ids: int, mk: int = 1) -> StepReply:
        row = StepRow(ref, expected_len, wire.encode_entry(ids, 0, "x"), mk, len(ids))
        return self.run(functions.step(KEYS, 0, session, "n", [row]))[0]

    def finish(
        self,
        session: SessionId,
        ref: JobRef,
        expected_len: int,
        n: int,
        last: Sequence[int] = (),
        cost: int = 9,
    ) -> StepReply:
        row = FinishRow(
            ref=ref,
            expected_len=expected_len,
            last_entry=wire.encode_entry(last, 0, "z") if last else None,
            terminal=wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=n)),
            reason=FinishReason.STOP,
            num_tokens=n,
            cost=cost,
        )
        return self.run(functions.finish(KEYS, 0, session, "n", [row]))[0]

    def fail(self, session: SessionId, ref: JobRef, *, retry: bool) -> StepReply:
        return self.run(functions.fail(KEYS, 0, session, "n", ref, failure=FAILURE, retry=retry))

    def alone(self, session: SessionId, ref: JobRef | None) -> None:
        self.run(functions.beat(KEYS, 0, session, "n", alone=ref))

    def die(self, session: SessionId) -> int:
        return self.run(functions.reap(KEYS, 0, session))

    def info(self, ref: JobRef) -> functions.JobInfo:
        return self.run(functions.job_info(KEYS, ref))

    def read(self, ref: JobRef, position: int | tuple[int, int] = 0) -> list[RawEntry]:
        found = self.run(functions.read_results(KEYS, {ref: position}, block_ms=None, count=None))
        return found.get(ref, [])

    def end_of(self, ref: JobRef) -> Finish:
        last = self.read(ref)[-1]
        assert isinstance(last, wire.Terminal)
        return last.finish

    def kinds(self, ref: JobRef) -> list[object]:
        """Markers as their number, token entries as their ids, the end as its reason."""
        found: list[object] = []
        for entry in self.read(ref):
            match entry:
                case wire.Marker():
                    found.append(entry.mk)
                case wire.Entry():
                    found.append((entry.index, *entry.token_ids))
                case wire.Terminal():
                    found.append(entry.finish.reason.value)
                case wire.Broken():
                    found.append(entry)
        return found


@pytest.fixture
def queue(any_redis_url: str) -> Iterator[Queue]:
    queue = Queue(any_redis_url)
    yield queue
    queue.raw.close()


def test_life_of_a_job(queue: Queue) -> None:
    ref = queue.submit("j", request=Request(prompt="hi", grain=2, tags=("night", "x")))
    session = queue.hello()
    (claimed,) = queue.claim(session)
    assert (claimed.ref, claimed.mk, claimed.n, claimed.claims, claimed.suspect) == (ref, 1, 0, 1, False)
    assert wire.decode_request(claimed.payload).prompt == "hi"
    assert queue.step(session, ref, 1, 5, 6) is OK
    assert queue.step(session, ref, 2, 7, 8) is OK
    assert queue.info(ref).status is JobStatus.RUNNING
    assert queue.info(ref).owner == session
    assert queue.finish(session, ref, 3, 5, [9]) is OK
    assert queue.kinds(ref) == [1, (2, 5, 6), (4, 7, 8), (5, 9), "stop"]
    info = queue.info(ref)
    assert (info.status, info.reason, info.n) == (JobStatus.DONE, FinishReason.STOP, 5)
    assert (info.payload, info.owner, info.tags) == (None, None, ("night", "x"))
    assert queue.step(session, ref, 5, 1, 2) is SEALED
    assert queue.finish(session, ref, 3, 5, [9]) is SEALED
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


def test_submit_again(queue: Queue) -> None:
    ref = queue.submit("j")
    same = Request(prompt="hi", sampling=SamplingParams(max_tokens=9), tags=("other",))
    again = queue.run(functions.submit(KEYS, ref, same))
    assert (again.created, again.status) == (False, JobStatus.QUEUED)
    with pytest.raises(Conflict):
        queue.run(functions.submit(KEYS, ref, Request(prompt="ho")))
    queue.run(functions.cancel(KEYS, ref))
    assert queue.run(functions.submit(KEYS, ref, same)).status is JobStatus.CANCELLED


def test_bad_names_and_numbers_are_refused_before_sending() -> None:
    good = Request(prompt="x")
    for ref in (JobRef("a:b", "j"), JobRef("a", ""), JobRef("a", "x" * 129), JobRef("ä", "j")):
        with pytest.raises(InvalidRequest):
            functions.submit(KEYS, ref, good)
    with pytest.raises(InvalidRequest, match="priority"):
        functions.submit(KEYS, JobRef("a", "j"), good, priority=3)
    with pytest.raises(InvalidRequest, match="tags"):
        functions.submit(KEYS, JobRef("a", "j"), Request(prompt="x", tags=("a:b",)))


def test_cost_counts_prompt_and_result() -> None:
    assert functions.job_cost(Request(token_ids=(1, 2), sampling=SamplingParams(max_tokens=5))) == 7
    assert functions.job_cost(Request(prompt="abcd", sampling=SamplingParams(max_tokens=5))) == 7


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
    assert queue.run(functions.step(KEYS, 0, session, "n", rows)) == [OK, SEALED, CAS]
    assert queue.run(functions.step(KEYS, 0, session, "n", [])) == []


def test_finish_must_add_up(queue: Queue) -> None:
    ref, session = queue.submit("j", request=Request(prompt="hi", grain=4)), queue.hello()
    queue.claim(session)
    queue.step(session, ref, 1, 1, 2, 3, 4)
    for n, last in ((5, []), (4, [1]), (9, [1])):
        with pytest.raises(RecordInvalid, match="are published"):
            queue.finish(session, ref, 2, n, last)
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
    assert (claimed.n, claimed.mk, claimed.attempts) == (4, 2, 0)
    assert queue.step(session, ref, 2, 5, 6, 7, 8) is SEALED
    assert queue.step(other, ref, 3, 5, 6, 7, 8, mk=2) is OK
    assert queue.kinds(ref) == [1, (4, 1, 2, 3, 4), 2, (8, 5, 6, 7, 8)]


def test_cancel_seals_at_once(queue: Queue) -> None:
    waiting, running, session = queue.submit("q", tenant="b"), queue.submit("r"), queue.hello()
    assert [one.ref for one in queue.claim(session, 2)] == [running, waiting]
    queue.run(functions.release(KEYS, 0, session, "n", [waiting]))
    queue.step(session, running, 1, 5)
    for ref in (waiting, running):
        assert queue.run(functions.cancel(KEYS, ref)) is JobStatus.CANCELLED
    assert queue.kinds(running) == [1, (1, 5), "cancelled"]
    assert queue.end_of(running).num_tokens == 1
    assert queue.step(session, running, 2, 6) is SEALED
    with pytest.raises(redis.ResponseError, match=r"equal or smaller|exhausted"):
        queue.raw.xadd(KEYS.out(running), {"t": b"x"}, id="9-0")
    assert queue.claim(session) == []
    assert queue.run(functions.cancel(KEYS, running)) is JobStatus.CANCELLED
    with pytest.raises(JobNotFound):
        queue.run(functions.cancel(KEYS, JobRef("a", "none")))


def test_deadline(queue: Queue) -> None:
    with pytest.raises(InvalidRequest, match="deadline_ms"):
        queue.submit("late", deadline_ms=0)
    session = queue.hello()
    running, waiting = queue.submit("r", deadline_ms=40), queue.submit("q", deadline_ms=40)
    (claimed,) = queue.claim(session, 1)
    assert claimed.deadline_at_ms == claimed.submitted_ms + 40
    assert queue.run(functions.sweep(KEYS, 0)) == Swept(retried=0, expired=0, repaired=0, more=False)
    time.sleep(0.05)
    assert queue.claim(session) == []  # sealed by the claim itself
    assert queue.end_of(waiting).reason is FinishReason.EXPIRED
    assert queue.run(functions.sweep(KEYS, 0)).expired == 1
    assert queue.kinds(running) == [1, "expired"]
    assert queue.step(session, running, 1, 5) is SEALED


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
    assert wire.decode_request(letter.payload).prompt == "hi"
    assert queue.fail(session, ref, retry=True) is SEALED


def test_failing_for_good(queue: Queue) -> None:
    ref, session = queue.submit("j"), queue.hello()
    queue.claim(session)
    assert queue.run(functions.note(KEYS, 0, session, "n", ref, '{"top_k": 5}')) is OK
    assert queue.fail(session, ref, retry=False) is OK
    info = queue.info(ref)
    assert (info.status, info.failure, info.note) == (JobStatus.FAILED, FAILURE, '{"top_k": 5}')
    assert queue.run(functions.note(KEYS, 0, session, "n", ref, "{}")) is SEALED


def test_tenants_take_turns(queue: Queue) -> None:
    for i in range(6):
        queue.submit(f"a{i}", tenant="a")
    session = queue.hello()
    assert queue.names(session, 2) == "a0 a1"
    for i in range(3):
        queue.submit(f"b{i}", tenant="b")
    assert queue.names(session) == "b0 a2 b1 a3 b2 a4 a5"


def test_weight_and_cost(queue: Queue) -> None:
    queue.run(functions.tenant_set(KEYS, 0, "a", weight=2))
    for i in range(6):
        queue.submit(f"a{i}", tenant="a")
        queue.submit(f"b{i}", tenant="b")
    first = queue.names(queue.hello(), 6)
    assert first.count("a") == 4
    queue.submit("dear", tenant="c", request=Request(token_ids=(1,), sampling=SamplingParams(max_tokens=900)))
    queue.submit("next", tenant="c")
    rest = queue.names(queue.hello())
    assert rest.startswith(("dear", "b2 dear", "b2 a4 dear"))
    assert rest.endswith("next")


def test_finish_corrects_what_was_charged(queue: Queue) -> None:
    session = queue.hello()
    dear = Request(token_ids=(1,), sampling=SamplingParams(max_tokens=99))
    for i in range(3):
        queue.submit(f"a{i}", tenant="a", request=dear)
        queue.submit(f"b{i}", tenant="b", request=dear)
    assert queue.names(session, 2) == "a0 b0"
    queue.finish(session, JobRef("b", "b0"), 1, 0, cost=1)  # was charged 100
    assert queue.names(session, 3) == "b1 a1 b2"


def test_a_seal_charges_what_was_used(queue: Queue) -> None:
    session = queue.hello()
    dear = Request(token_ids=(1, 2), sampling=SamplingParams(max_tokens=8000))
    ref = queue.submit("j", tenant="a", request=dear)
    queue.claim(session)
    queue.step(session, ref, 1, 5)
    queue.run(functions.cancel(KEYS, ref))
    assert float(queue.raw.hget(KEYS.wfq(0, 1), "vt:a")) == 3  # two tokens of prompt and the one made
    queue.run(functions.cancel(KEYS, queue.submit("never claimed".replace(" ", "-"), request=dear)))
    assert float(queue.raw.hget(KEYS.wfq(0, 1), "vt:a")) == 3


def test_a_job_that_is_tried_again_is_charged_once(queue: Queue) -> None:
    session = queue.hello()
    dear = Request(token_ids=(1, 2), sampling=SamplingParams(max_tokens=8000))
    ref = queue.submit("j", request=dear)
    queue.claim(session)
    queue.fail(session, ref, retry=False)
    (letter,) = queue.run(functions.dead_letters(KEYS, 0))
    queue.run(functions.dead_retry(KEYS, letter.id))
    (claimed,) = queue.claim(session)
    queue.finish(session, ref, claimed.mk, 0, cost=2)
    assert float(queue.raw.hget(KEYS.wfq(0, 1), "vt:a")) == 2


def test_the_lowest_class_has_every_eighth_turn(queue: Queue) -> None:
    for i in range(10):
        queue.submit(f"h{i}", priority=0)
        queue.submit(f"n{i}", priority=1)
    queue.submit("low", priority=2)
    order = queue.names(queue.hello()).split()
    assert order[:9] == ["h0", "h1", "h2", "h3", "h4", "h5", "h6", "low", "h7"]
    assert order[10:12] == ["h9", "n0"]


def test_what_ran_before_comes_first(queue: Queue) -> None:
    session = queue.hello()
    for name in ("x", "y", "z"):
        queue.submit(name)
        time.sleep(0.002)
    queue.claim(session, 2)
    for name in ("y", "x"):
        queue.run(functions.release(KEYS, 0, session, "n", [JobRef("a", name)]))
    assert queue.names(session) == "x y z"


def test_slots_and_draining(queue: Queue) -> None:
    for i in range(5):
        queue.submit(f"j{i}")
    session = queue.hello(slots=3)
    assert len(queue.claim(session, 2)) == 2
    assert len(queue.claim(session, 9)) == 1
    assert queue.claim(session, 9) == []
    other = queue.hello("other")
    assert queue.run(functions.beat(KEYS, 0, other, "n", draining=True)) == {}
    assert queue.claim(other, 9) == []
    shown = {one.session: one for one in queue.run(functions.sessions(KEYS, 0))}
    assert (shown[session].owned, shown[session].free_slots, shown[session].info) == (3, 0, {"pid": "7"})
    assert shown[other].draining
    assert 0 < shown[other].lease_left_ms <= 5000
    queue.run(functions.bye(KEYS, 0, session, "n"))
    assert len(queue.run(functions.sessions(KEYS, 0))) == 1
    assert queue.run(functions.backlog(KEYS, 0)).classes[1].again == 3


def test_caps_of_a_tenant(queue: Queue) -> None:
    def refused(name: str) -> str:
        with pytest.raises(QueueFull) as caught:
            queue.submit(name)
        assert caught.value.retry_ms > 0
        return caught.value.cap

    queue.run(functions.tenant_set(KEYS, 0, "a", max_jobs=2, max_running=1))
    queue.submit("j0")
    queue.submit("j1")
    assert refused("j2") == "jobs"
    queue.submit("j2", tenant="b")
    session = queue.hello()
    assert queue.names(session) == "j0 j2"
    queue.run(functions.tenant_set(KEYS, 0, "a", max_jobs=0, max_bytes=100))
    assert refused("j3") == "bytes"
    (a, b) = queue.run(functions.tenants(KEYS, 0))
    assert (a.num_queued, a.num_running, a.max_running, a.max_jobs, a.max_bytes) == (1, 1, 1, 0, 100)
    assert (b.tenant, b.num_queued, b.num_running, b.weight) == ("b", 0, 1, 1.0)
    queue.finish(session, JobRef("a", "j0"), 1, 0)
    assert queue.names(session) == "j1"


def test_rate_of_a_tenant(queue: Queue) -> None:
    queue.run(functions.tenant_set(KEYS, 0, "a", max_tokens_per_s=1))
    for i in range(3):
        queue.submit(f"j{i}")  # of cost 10, as much as ten seconds bring
    session = queue.hello()
    assert queue.names(session) == "j0"
    queue.finish(session, JobRef("a", "j0"), 1, 0, cost=1)
    assert queue.names(session) == "j1"


def test_meta_is_set_once(queue: Queue) -> None:
    assert queue.run(functions.meta_get(KEYS)) is None
    assert queue.run(functions.meta_claim(KEYS)).model_digest == ""
    assert queue.run(functions.meta_claim(KEYS, model_digest="m1")).model_digest == "m1"
    assert queue.run(functions.meta_claim(KEYS)).model_digest == "m1"
    with pytest.raises(ConfigError, match="model digest m1, this is m2"):
        queue.run(functions.meta_claim(KEYS, model_digest="m2"))
    with pytest.raises(ConfigError, match="partitions 1, this is 16"):
        queue.run(functions.meta_claim(Keys(num_partitions=16)))


def test_events_tell_what_happened(queue: Queue) -> None:
    ref, session = queue.submit("j"), queue.hello()
    queue.claim(session)
    queue.run(functions.cancel(KEYS, ref))
    events = queue.run(functions.read_events(KEYS, 0, "0"))
    assert [event.kind for event in events] == ["submit", "hello", "claim", "finish"]
    assert (events[2].ref, events[2].session) == (ref, session)
    assert queue.run(functions.read_events(KEYS, 0, events[-1].entry_id)) == []
