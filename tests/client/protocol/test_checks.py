"""One check of the functions each: what happens where only this check stands between a call and harm.

The gate in ``infra.mutations`` removes the checks one at a time and expects the test named there to fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.audit import Snapshot
from tests.support.world import World

from thinkstream_client.errors import Fenced, InvalidRequest, JobNotFound, RecordInvalid
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.functions import Call, Claimed, FinishRow, StepReply, StepRow
from thinkstream_client.records import (
    Finish,
    FinishReason,
    JobFailure,
    JobRef,
    JobStatus,
    Request,
    SessionId,
)

KEYS = Keys()
OK, CAS, NOT_OURS = StepReply.OK, StepReply.CAS, StepReply.NOT_OURS
FAILURE = JobFailure(code="StepFailed", message="")
Make = Callable[[SessionId, str, Claimed], "Call[Any]"]


class Partition(World):
    """Sessions that call the functions directly, with a nonce that is always the same."""

    def hello(
        self, name: str = "w", *, slots: int = 9, lease_ms: int = 60_000, nonce: str = "n"
    ) -> SessionId:
        session = SessionId(f"{name}.1")
        call = functions.hello(KEYS, 0, session, nonce, replica=name, slots=slots, lease_ms=lease_ms, info={})
        self.run(call)
        return session

    def job(self, job_id: str = "j") -> tuple[SessionId, Claimed]:
        """A job that a session owns and that has one token."""
        self.submit(job_id)
        session = self.hello()
        (claimed,) = self.claim(session)
        assert self.run(step(session, "n", claimed)) == [OK]
        return session, claimed

    def contents(self) -> dict[str, Any]:
        """All that is there, but for the leases."""
        found = Snapshot(self.raw, KEYS).of
        found.pop(KEYS.leases(0), None)
        return found


def row(claimed: Claimed, length: int) -> StepRow:
    entry = wire.encode_entry([1] * claimed.grain, 0, "")
    return StepRow(claimed.ref, length, entry, claimed.mk, claimed.grain)


def step(session: SessionId, nonce: str, claimed: Claimed, num_done: int = 0) -> Call[list[StepReply]]:
    length = claimed.n // claimed.grain + claimed.mk + num_done
    return functions.step(KEYS, 0, session, nonce, [row(claimed, length)])


def finish(
    session: SessionId, nonce: str, claimed: Claimed, num_done: int = 1, last: bool = False
) -> Call[list[StepReply]]:
    num_tokens = claimed.n + num_done * claimed.grain + int(last)
    end = FinishRow(
        ref=claimed.ref,
        expected_len=claimed.n // claimed.grain + claimed.mk + num_done,
        last_entry=wire.encode_entry([1], 0, "") if last else None,
        terminal=wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=num_tokens)),
        reason=FinishReason.STOP,
        num_tokens=num_tokens,
        cost=5,
    )
    return functions.finish(KEYS, 0, session, nonce, [end])


CALLS: dict[str, Make] = {
    "step": lambda session, nonce, claimed: step(session, nonce, claimed, 1),
    "finish": finish,
    "fail": lambda s, nonce, one: functions.fail(KEYS, 0, s, nonce, one.ref, failure=FAILURE, retry=True),
    "release": lambda session, nonce, claimed: functions.release(KEYS, 0, session, nonce, [claimed.ref]),
    "note": lambda session, nonce, claimed: functions.note(KEYS, 0, session, nonce, claimed.ref, "{}"),
    "beat": lambda session, nonce, claimed: functions.beat(KEYS, 0, session, nonce, alone=claimed.ref),
    "bye": lambda session, nonce, claimed: functions.bye(KEYS, 0, session, nonce),
    "hello": lambda session, nonce, claimed: functions.hello(
        KEYS, 0, session, nonce, replica="x", slots=99, lease_ms=9, info={}
    ),
}


@pytest.fixture
def partition(any_redis_url: str) -> Iterator[Partition]:
    partition = Partition(any_redis_url)
    yield partition
    partition.close()


@pytest.mark.parametrize("name", CALLS)
def test_only_who_knows_the_nonce_is_the_session(partition: Partition, name: str) -> None:
    session, claimed = partition.job()
    before = partition.contents()
    with pytest.raises(Fenced):
        partition.run(CALLS[name](session, "another's", claimed))
    assert partition.contents() == before


def test_a_zombie_writes_between_reap_and_the_next_claim(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.reap(session)
    before = partition.contents()
    for call in (step, finish):
        with pytest.raises(Fenced):
            partition.run(call(session, "n", claimed, 1))
    assert partition.contents() == before


def test_a_delayed_step_of_the_same_session_comes_after_release_and_claim(partition: Partition) -> None:
    session, claimed = partition.job()
    delayed = step(session, "n", claimed, 1)
    assert partition.run(functions.release(KEYS, 0, session, "n", [claimed.ref])) == 1
    (again,) = partition.claim(session)
    assert (again.n, again.claims) == (1, 2)
    assert partition.run(delayed) == [CAS]
    assert partition.run(step(session, "n", again)) == [OK]
    assert len(partition.look().jobs[claimed.ref].token_ids) == 2


def test_a_foreign_entry_of_a_high_id_stops_its_own_row(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.raw.xadd(KEYS.out(claimed.ref), {"x": "y"}, id="99-0")
    assert partition.run(step(session, "n", claimed, 2)) == [NOT_OURS]


def test_an_end_of_a_job_that_was_given_back(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(functions.release(KEYS, 0, session, "n", [claimed.ref]))
    before = partition.contents()
    assert partition.run(finish(session, "n", claimed)) == [NOT_OURS]
    assert partition.contents() == before


def test_an_end_whose_reply_was_lost(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(step(session, "n", claimed, 1))
    before = partition.contents()
    assert partition.run(finish(session, "n", claimed, 1, last=True)) == [CAS]
    assert partition.contents() == before


@pytest.mark.parametrize("name", ["finish", "fail"])
def test_an_end_of_a_job_whose_hash_is_gone(partition: Partition, name: str) -> None:
    session, claimed = partition.job()
    partition.raw.delete(KEYS.job(claimed.ref))
    reply: Any = partition.run(CALLS[name](session, "n", claimed))
    assert reply in (NOT_OURS, [NOT_OURS])


@pytest.mark.parametrize("name", ["fail", "release", "note"])
def test_a_session_does_nothing_to_another_ones_job(partition: Partition, name: str) -> None:
    _, claimed = partition.job()
    other = partition.hello("other")
    before = partition.contents()
    assert partition.run(CALLS[name](other, "n", claimed)) in (0, NOT_OURS)
    assert partition.contents() == before


def test_a_failure_that_is_no_record(partition: Partition) -> None:
    session, claimed = partition.job()
    member = f"{claimed.ref.tenant}:{claimed.ref.job_id}"
    partition.raw.fcall("ts1_fail", 1, KEYS.prefix(0), session, "n", member, b"\xc1", 0)
    info = partition.run(functions.job_info(KEYS, claimed.ref))
    assert (info.status, info.failure) == (JobStatus.FAILED, JobFailure(code="JobFailed", message=""))


def test_a_lease_that_is_over_takes_no_jobs(partition: Partition) -> None:
    partition.submit("j")
    session = partition.hello(lease_ms=1)
    time.sleep(0.005)
    with pytest.raises(Fenced):
        partition.run(functions.claim(KEYS, 0, session, 1))
    partition.hello()
    partition.raw.delete(KEYS.session(0, session))
    with pytest.raises(Fenced):
        partition.run(functions.claim(KEYS, 0, session, 1))


def test_a_running_job_that_stands_in_line_is_not_given_out_twice(partition: Partition) -> None:
    _, claimed = partition.job()
    partition.raw.zadd(KEYS.again(0, 1), {f"a:{claimed.ref.job_id}": 1})
    other = partition.hello("other")
    assert partition.claim(other) == []
    assert not partition.raw.exists(KEYS.own(0, other))


def test_a_stream_of_a_former_life_is_no_part_of_the_next(partition: Partition) -> None:
    ref = JobRef("a", "j")
    partition.raw.xadd(KEYS.out(ref), {"t": b"old"}, id="7-0")
    _, claimed = partition.job()
    assert (claimed.ref, claimed.n) == (ref, 0)
    assert partition.look().jobs[ref].token_ids == (1,)


def test_what_is_done_cannot_be_cancelled(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(finish(session, "n", claimed))
    before = partition.contents()
    assert partition.run(functions.cancel(KEYS, claimed.ref)) is JobStatus.DONE
    assert partition.contents() == before


def test_cancel_tells_a_missing_job_from_a_broken_one(partition: Partition) -> None:
    ref = partition.submit("j")
    with pytest.raises(JobNotFound):
        partition.run(functions.cancel(KEYS, JobRef("a", "none")))
    partition.raw.hset(KEYS.job(ref), "mk", "many")
    with pytest.raises(RecordInvalid):
        partition.run(functions.cancel(KEYS, ref))


def test_confirm_makes_no_job(partition: Partition) -> None:
    with pytest.raises(JobNotFound):
        partition.run(functions.confirm(KEYS, JobRef("a", "none")))
    assert not partition.raw.exists(KEYS.job(JobRef("a", "none")))


def test_the_death_of_a_session_is_told_once(partition: Partition) -> None:
    session, _ = partition.job()
    for _ in range(3):
        partition.reap(session)
    events = partition.run(functions.read_events(KEYS, 0, "0"))
    assert [event.kind for event in events].count("gone") == 1


def test_a_job_lost_and_submitted_again_is_not_its_old_owners(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.raw.delete(KEYS.job(claimed.ref))
    partition.submit("j")
    partition.reap(session)
    assert partition.raw.zcard(KEYS.again(0, 1)) == 0
    assert partition.raw.xlen(KEYS.queue(0, 1, "a")) == 1


def test_strays_among_what_is_due_do_nothing(partition: Partition) -> None:
    session, claimed = partition.job("done")
    partition.run(finish(session, "n", claimed))
    _, running = partition.job("running")
    partition.raw.zadd(KEYS.due(0), {"retry:a:running": 1, "deadline:a:done": 1, "retry:a:none": 1})
    swept = partition.run(functions.sweep(KEYS, 0))
    assert (swept.retried, swept.expired) == (0, 0)
    assert partition.status(running.ref) is JobStatus.RUNNING
    assert partition.status(claimed.ref) is JobStatus.DONE


def test_a_stray_among_the_running_is_not_run_again(partition: Partition) -> None:
    session, claimed = partition.job("done")
    partition.run(finish(session, "n", claimed))
    partition.raw.zadd(KEYS.running(0), {"a:done": 1})
    assert partition.run(functions.sweep(KEYS, 0)).repaired == 0
    assert partition.status(claimed.ref) is JobStatus.DONE


def test_a_job_submitted_again_stays_listed(partition: Partition) -> None:
    partition.submit("j")
    partition.raw.zadd(KEYS.ended(0), {"a:j:": 1})
    partition.run(functions.sweep(KEYS, 0))
    assert len(partition.run(functions.list_jobs(KEYS, 0, "a"))) == 1


def test_a_queue_whose_name_is_no_tenants(partition: Partition) -> None:
    partition.raw.xadd(f"{KEYS.prefix(0)}in:1:a:b", {"job": "j"})
    partition.run(functions.sweep(KEYS, 0))
    assert partition.raw.zcard(KEYS.ready(0, 1)) == 0


def test_a_hash_of_another_type_is_written_off(partition: Partition) -> None:
    ref = partition.submit("j")
    partition.raw.delete(KEYS.job(ref))
    partition.raw.set(KEYS.job(ref), "text")
    assert partition.claim(partition.hello()) == []
    assert partition.raw.xlen(KEYS.out(ref)) == 1


def test_a_named_death_makes_no_other_suspect(partition: Partition) -> None:
    named, other = partition.submit("named"), partition.submit("other")
    session = partition.hello()
    assert len(partition.claim(session)) == 2
    partition.run(functions.beat(KEYS, 0, session, "n", alone=named))
    partition.reap(session)
    suspects = [partition.run(functions.job_info(KEYS, ref)).suspect for ref in (named, other)]
    assert suspects == [True, False]


def test_a_running_job_of_a_session_without_a_lease_is_repaired(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.raw.zrem(KEYS.leases(0), session)
    assert partition.run(functions.sweep(KEYS, 0)).repaired == 1
    assert partition.status(claimed.ref) is JobStatus.QUEUED


def test_a_dead_job_whose_stream_has_a_hole_begins_anew(partition: Partition) -> None:
    session, claimed = partition.job()
    partition.run(step(session, "n", claimed, 1))
    partition.run(functions.fail(KEYS, 0, session, "n", claimed.ref, failure=FAILURE, retry=False))
    partition.raw.xdel(KEYS.out(claimed.ref), "1-0")
    letter = partition.run(functions.dead_letters(KEYS, 0))[0].id
    partition.run(functions.dead_retry(KEYS, letter))
    (again,) = partition.claim(session)
    assert (again.n, again.mk) == (0, 1)


def test_a_job_counts_once_in_its_batch(partition: Partition) -> None:
    for job_id in ("broken", "good"):
        partition.run(functions.submit(KEYS, JobRef("a", job_id), Request(prompt="x"), batch="b"))
    partition.raw.hset(KEYS.job(JobRef("a", "broken")), "mk", "many")
    partition.raw.xadd(KEYS.queue(0, 1, "a"), {"job": "broken"})
    partition.run(functions.batch_close(KEYS, 0, "a", "b"))
    session = partition.hello()
    (good,) = partition.claim(session)
    assert partition.raw.xlen(KEYS.dead(0)) == 2, "it was met twice"
    assert partition.run(finish(session, "n", good, 0)) == [OK]
    end = partition.run(functions.read_batch_end(KEYS, 0, "a", "b"))
    assert end is not None
    assert (end.done, end.failed) == (1, 1)


def test_a_letter_that_is_not_there(partition: Partition) -> None:
    for call in (functions.dead_retry, functions.dead_drop):
        with pytest.raises(InvalidRequest):
            partition.run(call(KEYS, "1-1"))
