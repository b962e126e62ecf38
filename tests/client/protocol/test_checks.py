"""One check of the functions each: what happens where only this check stands between a call and harm.

The gate in ``infra.mutations`` removes the checks one at a time and expects the test named there to fail.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.partition import CAS, FAILURE, KEYS, NOT_OURS, OK, Make, Partition, finish, step

from thinkstream_client.errors import Fenced
from thinkstream_client.outcome import JobFailure, JobStatus
from thinkstream_client.protocol import functions

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
