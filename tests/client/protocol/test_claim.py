"""Whose turn it is, on both servers."""

from __future__ import annotations

import time

import pytest
from tests.support.queue import KEYS, Queue

from thinkstream_client.protocol import functions, wire
from thinkstream_client.records import (
    JobRef,
    Request,
    SamplingParams,
)


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


@pytest.mark.parametrize("place", ["sealed", "expired", "again"])
def test_one_claim_clears_so_much_and_no_more(queue: Queue, place: str) -> None:
    """Jobs that cannot be given out hold the server for a bounded time, however many there are."""
    session, num_jobs = queue.hello(), 100
    refs = [queue.submit(f"j{number}") for number in range(num_jobs)]
    with queue.raw.pipeline() as pipe:
        for ref in refs:
            if place == "sealed":
                pipe.xadd(KEYS.out(ref), {"f": "x"}, id=wire.SEAL_ID)
            elif place == "expired":
                pipe.hset(KEYS.job(ref), "deadline", 1)
            else:
                pipe.hset(KEYS.job(ref), "status", "running")
                pipe.zadd(KEYS.again(0, 1), {f"a:{ref.job_id}": 1})
        if place == "again":
            pipe.delete(KEYS.queue(0, 1, "a"))
        pipe.execute()
    queue.submit("good")
    assert queue.claim(session) == []
    left = queue.raw.zcard(KEYS.again(0, 1)) + queue.raw.xlen(KEYS.queue(0, 1, "a"))
    assert left == num_jobs - 64 + 1
    assert queue.names(session) == "good"
