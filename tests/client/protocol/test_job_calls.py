"""Submit, cancel and what a tenant may have waiting, on both servers."""

from __future__ import annotations

import time

import pytest
import redis
from tests.support.queue import KEYS, NOT_OURS, Queue

from thinkstream_client.errors import (
    Conflict,
    InvalidRequest,
    JobNotFound,
    QueueFull,
)
from thinkstream_client.outcome import FinishReason, JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.functions import Swept
from thinkstream_client.records import JobRef, Request, SamplingParams


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


def test_cancel_seals_at_once(queue: Queue) -> None:
    waiting, running, session = queue.submit("q", tenant="b"), queue.submit("r"), queue.hello()
    assert [one.ref for one in queue.claim(session, 2)] == [running, waiting]
    queue.run(functions.release(KEYS, 0, session, "n", [waiting]))
    queue.step(session, running, 1, 5)
    for ref in (waiting, running):
        assert queue.run(functions.cancel(KEYS, ref)) is JobStatus.CANCELLED
    assert queue.kinds(running) == [1, (1, 5), "cancelled"]
    assert queue.end_of(running).num_tokens == 1
    assert queue.step(session, running, 2, 6) is NOT_OURS
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
    assert queue.info(claimed.ref).deadline_at_ms == claimed.submitted_ms + 40
    assert queue.run(functions.sweep(KEYS, 0)) == Swept(retried=0, expired=0, repaired=0, more=False)
    time.sleep(0.05)
    assert queue.claim(session) == []  # sealed by the claim itself
    assert queue.end_of(waiting).reason is FinishReason.EXPIRED
    assert queue.run(functions.sweep(KEYS, 0)).expired == 1
    assert queue.kinds(running) == [1, "expired"]
    assert queue.step(session, running, 1, 5) is NOT_OURS


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
