"""What the Publisher makes of a Redis that refuses: rows, calls, sessions."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.support.hand_publisher import Replica, end, tokens

from thinkstream_client.errors import (
    CommandRefused,
    ConfigError,
    Fenced,
    RecordInvalid,
    ThinkstreamError,
)
from thinkstream_client.outcome import FinishReason, JobStatus
from thinkstream_client.protocol import functions
from thinkstream_workers import endings, patience, sending
from thinkstream_workers.orders import SequenceEnd, StepOutput, TokenOut
from thinkstream_workers.publication import Publication

if TYPE_CHECKING:
    from tests.workers.conftest import Letters, Service


@pytest.fixture
def replica(service: Service, letters: Letters) -> Replica:
    return Replica(service, letters)


def test_sessions_that_redis_always_refuses_end_the_replica_and_do_not_spin(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MAX_REFUSED_SESSIONS", 3)
    replica.connection.fence_calls = "ts1_beat"
    began = time.monotonic()
    with pytest.raises(Fenced, match="refused 3 new sessions in a row"):
        replica.make(num_turns=100)
    assert time.monotonic() - began > 0.1
    assert replica.connection.sent.count("ts1_hello") == 1 + 3


def test_a_beat_in_between_forgives_refusals(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "MAX_REFUSED_SESSIONS", 1)
    for _ in range(4):
        replica.connection.fence_calls = "ts1_beat"
        replica.publisher.beat_soon()
        replica.make()
        replica.connection.fence_calls = ""
        replica.make()
    assert replica.session.is_open


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_row_that_redis_refuses_for_good_fails_its_own_job(
    service: Service, replica: Replica, at_the_end: bool
) -> None:
    refs = [service.submit(f"job-{i}") for i in range(3)]
    keys = replica.take()
    first = StepOutput(tokens=[TokenOut(key, 1, 65) for key in keys])
    last = StepOutput(ends=[SequenceEnd(key=key, reason=FinishReason.LENGTH) for key in keys])
    if at_the_end:
        replica.make(first)
    replica.connection.refuse_rows_of = "t:job-1"
    replica.make(*([last] if at_the_end else [first, last]), num_turns=4)
    statuses = [service.info(ref).status for ref in refs]
    assert statuses == [JobStatus.DONE, JobStatus.WAITING, JobStatus.DONE]
    failure = service.info(refs[1]).failure
    assert failure is not None
    assert failure.code == "CommandRefused"
    assert replica.stops() == [keys[1]]
    assert len(replica.table) == 0


REFUSALS = pytest.mark.parametrize(
    "refusal",
    [RecordInvalid("WRONGTYPE"), CommandRefused("a Lua error"), ConfigError("NOPERM")],
    ids=lambda error: type(error).__name__,
)


@REFUSALS
@pytest.mark.parametrize("num_jobs", [1, 3])
@pytest.mark.parametrize("name", ["ts1_beat", "ts1_step", "ts1_finish"])
def test_a_call_that_redis_refuses_ends_no_job(
    service: Service, replica: Replica, name: str, num_jobs: int, refusal: ThinkstreamError
) -> None:
    """A key that others wrote over, a right that is missing: no row of the call is to blame."""
    refs = [service.submit(f"job-{number}") for number in range(num_jobs)]
    keys = replica.take()
    replica.connection.refuse_call, replica.connection.refusal = name, refusal
    replica.publisher.beat_soon()
    outputs = [StepOutput(tokens=[TokenOut(key, index, 65) for key in keys]) for index in (1, 2)]
    replica.make(*outputs, num_turns=2)
    assert replica.outbox.put(StepOutput(ends=[end(key).ends[0] for key in keys]), 0.0)
    replica.make(num_turns=2)
    assert {service.info(ref).status for ref in refs} == {JobStatus.RUNNING}
    assert replica.stops() == []
    replica.connection.refuse_call = ""
    replica.make(num_turns=4)
    assert {service.info(ref).status for ref in refs} == {JobStatus.DONE}
    assert {service.result(ref).ids for ref in refs} == {(65, 65)}


@pytest.mark.parametrize("name", ["ts1_beat", "ts1_step"])
def test_a_call_that_redis_refuses_for_good_comes_out(
    service: Service, replica: Replica, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MAX_BACKOFF_S", 0.001)
    service.submit("job")
    (key,) = replica.take()
    replica.connection.refuse_call = name
    replica.publisher.beat_soon()
    replica.make(*tokens(key, "A"), num_turns=patience.MAX_REFUSED_CALLS)
    with pytest.raises(RecordInvalid):
        replica.make()


def test_refusals_that_pass_are_not_added_up(
    service: Service, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MAX_BACKOFF_S", 0.001)
    service.submit("job")
    (key,) = replica.take()
    for index in (1, 2):
        replica.connection.refuse_call = "ts1_step"
        replica.make(*tokens(key, "A", start=index), num_turns=patience.MAX_REFUSED_CALLS)
        replica.connection.refuse_call = ""
        replica.make(num_turns=2)
    assert service.result(key.ref).ids == (65, 65)


def test_an_end_that_does_not_fit_its_stream_fails_its_own_job(
    service: Service, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [service.submit(f"job-{number}") for number in range(3)]
    keys = replica.take()
    replica.make(StepOutput(tokens=[TokenOut(key, 1, 65) for key in keys]))
    wrong = keys[1]

    def finish_row(publication: Publication, now: float) -> functions.FinishRow:
        row = endings.finish_row(publication, now)
        return replace(row, num_tokens=9) if publication.key == wrong else row

    monkeypatch.setattr(sending, "finish_row", finish_row)
    replica.make(StepOutput(ends=[end(key).ends[0] for key in keys]), num_turns=2)
    statuses = [service.info(ref).status for ref in refs]
    assert statuses == [JobStatus.DONE, JobStatus.FAILED, JobStatus.DONE]
    assert replica.stops() == [wrong]
    assert len(replica.table) == 0
