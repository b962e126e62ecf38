"""One check of the functions each, of clients, scheduler and upkeep; see ``test_checks``."""

from __future__ import annotations

import time

import pytest
from tests.support.partition import FAILURE, KEYS, OK, Partition, finish, step

from thinkstream_client.errors import Fenced, JobNotFound, LetterNotFound, RecordInvalid
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.records import JobRef, Request


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
    partition.raw.hset(KEYS.job(claimed.ref), "deadline", 1)
    partition.raw.zadd(KEYS.due(0), {"retry:a:running": 1, "deadline:a:done": 1, "retry:a:none": 1})
    swept = partition.run(functions.sweep(KEYS, 0))
    assert (swept.retried, swept.expired) == (0, 0)
    assert partition.status(running.ref) is JobStatus.RUNNING
    assert partition.status(claimed.ref) is JobStatus.DONE


def test_a_deadline_that_somebody_has_moved_up_is_the_jobs_own(partition: Partition) -> None:
    _, claimed = partition.job()
    partition.raw.zadd(KEYS.due(0), {"deadline:a:j": 1})
    assert partition.run(functions.sweep(KEYS, 0)).expired == 0
    assert partition.raw.zscore(KEYS.due(0), "deadline:a:j") > 1
    assert partition.status(claimed.ref) is JobStatus.RUNNING


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


def test_a_queue_that_takes_no_more_refuses_nobody(partition: Partition) -> None:
    """What stood in it is found by the walk over the keys."""
    first = partition.submit("first")
    queue = KEYS.queue(0, 1, "a")
    partition.raw.xadd(queue, {"x": "y"}, id=wire.SEAL_ID)
    second = partition.submit("second")
    assert partition.raw.xlen(f"{queue}:broken") == 2
    partition.run(functions.sweep(KEYS, 0))
    assert {one.ref for one in partition.claim(partition.hello())} == {first, second}


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
    for job_id in ("twice", "good"):
        partition.run(functions.submit(KEYS, JobRef("a", job_id), Request(prompt="x"), batch="b"))
    for _ in range(2):
        partition.run(functions.cancel(KEYS, JobRef("a", "twice")))
        partition.raw.hset(KEYS.job(JobRef("a", "twice")), "status", "queued")
    partition.run(functions.batch_close(KEYS, 0, "a", "b"))
    session = partition.hello()
    (good,) = partition.claim(session)
    assert partition.run(finish(session, "n", good, 0)) == [OK]
    end = partition.run(functions.read_batch_end(KEYS, 0, "a", "b"))
    assert end is not None
    assert (end.done, end.cancelled) == (1, 1)


def test_a_letter_that_is_not_there(partition: Partition) -> None:
    for call in (functions.dead_retry, functions.dead_drop):
        with pytest.raises(LetterNotFound):
            partition.run(call(KEYS, "1-1"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", ""),
        ("grain", "0"),
        ("grain", "1e999"),
        ("cost", "nan"),
        ("cost", "inf"),
        ("cost", "99999999999999"),
        ("cost", "1e0"),
        ("cost", " 1 "),
        ("mk", "-1"),
        ("priority", "3"),
        ("submitted", "nan"),
        ("ttl", "1e308"),
        ("entry", ":"),
    ],
)
def test_a_hash_that_cannot_be_a_jobs(partition: Partition, field: str, value: str) -> None:
    broken, good = partition.submit("broken"), partition.submit("good")
    partition.raw.hset(KEYS.job(broken), field, value)
    assert [one.ref for one in partition.claim(partition.hello())] == [good]
    assert partition.status(broken) is JobStatus.FAILED


GOOD_ARGUMENTS = {
    "tenant": "a", "job_id": "j", "digest": "d", "payload": "p", "grain": "1", "cost": "9:1", "priority": "1",
    "deadline": "", "ttl": "60000", "batch": "", "tag": "t",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in GOOD_ARGUMENTS if name not in ("digest", "payload")])
def test_a_submission_that_can_be_no_job(partition: Partition, name: str) -> None:
    for value in ("a:b", "-1.5", "nan", "1e999", "\xff" if name != "cost" else "nan:inf", "x" * 129):
        given = {**GOOD_ARGUMENTS, name: value}
        is_fine = (name, value) in {
            (n, v) for n in ("tenant", "job_id", "batch", "tag") for v in ("nan", "1e999", "-1.5")
        }
        reply = partition.raw.fcall("ts1_submit", 1, KEYS.prefix(0), *given.values())
        assert reply[0] == (b"OK" if is_fine else b"INVALID"), (name, value)
        partition.raw.flushall()
