"""The Publisher against a real server, with an engine's outputs put into the outbox by hand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis
from tests.support.hand_publisher import Replica, end, tokens

from thinkstream_client.outcome import FinishReason, JobFailure, JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.wire import Entry, Marker
from thinkstream_client.records import JobRef
from thinkstream_workers.orders import JobKey, Started, StepOutput, TokenOut

if TYPE_CHECKING:
    from tests.workers.conftest import Letters, Service


@pytest.fixture
def replica(service: Service, letters: Letters) -> Replica:
    return Replica(service, letters)


def test_a_batch_is_published_with_one_call_per_step(service: Service, replica: Replica) -> None:
    refs = [service.submit(f"job-{i}") for i in range(3)]
    keys = replica.take()
    replica.publisher.turn(0.0)
    replica.make(StepOutput(started=[Started(key, 2) for key in keys]))
    replica.connection.sent.clear()
    for index, letter in enumerate(b"AB", start=1):
        replica.make(StepOutput(tokens=[TokenOut(key, index, letter) for key in keys]))
    assert replica.connection.sent == ["ts1_step", "ts1_step"]
    replica.make(StepOutput(ends=[end(key).ends[0] for key in keys]))
    assert replica.connection.sent[2:] == ["ts1_finish"]
    for ref in refs:
        result = service.result(ref)
        assert (result.ids, result.text) == ((65, 66), "AB")
        assert result.finish is not None
        assert result.finish.reason is FinishReason.LENGTH
        assert (result.finish.usage.prompt_tokens, result.finish.usage.cached_tokens) == (3, 2)
        assert service.info(ref).status is JobStatus.DONE
    assert len(replica.table) == 0


@pytest.mark.parametrize("num_tokens", [3, 4, 5])
def test_the_end_takes_the_rest_of_a_grain_along(service: Service, replica: Replica, num_tokens: int) -> None:
    ref = service.submit("job", grain=2)
    (key,) = replica.take(grain=2)
    text = "ABCDE"[:num_tokens]
    replica.make(*tokens(key, text), end(key), num_turns=4)
    result = service.result(ref)
    assert result.text == text
    sizes = [len(entry.token_ids) for entry in result.raw if isinstance(entry, Entry)]
    assert sizes == {3: [2, 1], 4: [2, 2], 5: [2, 2, 1]}[num_tokens]
    assert service.info(ref).n == num_tokens


def test_a_stop_string_ends_the_job_here_and_in_the_engine(service: Service, replica: Replica) -> None:
    ref = service.submit("job")
    (key,) = replica.take(stop=("CD",))
    replica.make(StepOutput(started=[Started(key, 2)]), *tokens(key, "ABCDEF"), num_turns=8)
    result = service.result(ref)
    assert (result.text, result.ids) == ("AB", tuple(b"ABCD"))
    assert result.finish is not None
    assert (result.finish.reason, result.finish.num_tokens) == (FinishReason.STOP, 4)
    assert result.finish.usage.cached_tokens == 2
    assert replica.stops() == [key]


@pytest.mark.parametrize("lost", ["ts1_step", "ts1_finish"])
def test_a_lost_reply_doubles_nothing(service: Service, replica: Replica, lost: str) -> None:
    ref = service.submit("job")
    (key,) = replica.take()
    replica.make(*tokens(key, "AB"), num_turns=2)
    replica.connection.lose_reply_of.append(lost)
    replica.make(*tokens(key, "CD", start=3), end(key), num_turns=6)
    assert not replica.connection.lose_reply_of
    result = service.result(ref)
    assert (result.text, result.ids) == ("ABCD", tuple(b"ABCD"))
    assert result.finish is not None
    assert len(replica.table) == 0


def test_nothing_is_dropped_while_redis_is_away(service: Service, replica: Replica) -> None:
    ref = service.submit("job")
    (key,) = replica.take()
    replica.connection.refuse = True
    replica.make(*tokens(key, "AB"), num_turns=2)
    assert service.result(ref).ids == ()
    replica.connection.refuse = False
    replica.connection.sent.clear()
    replica.make(*tokens(key, "C", start=3), end(key), num_turns=4)
    assert replica.connection.sent[0] == "ts1_beat", "after a reconnect the session asks first"
    assert service.result(ref).text == "ABC"


def test_what_redis_lost_is_published_again(service: Service, replica: Replica, redis_url: str) -> None:
    ref = service.submit("job")
    (key,) = replica.take()
    replica.make(*tokens(key, "ABCD"), num_turns=4)
    _roll_back(redis_url, service.keys.out(ref), keep=3)  # the marker and two tokens
    replica.make(*tokens(key, "E", start=5), end(key), num_turns=5)
    result = service.result(ref)
    assert (result.text, result.ids) == ("ABCDE", tuple(b"ABCDE"))
    assert [type(entry) for entry in result.raw[:-1]] == [Marker, *[Entry] * 5]


def test_another_history_is_left_alone(service: Service, replica: Replica, redis_url: str) -> None:
    ref = service.submit("job")
    (key,) = replica.take()
    replica.make(*tokens(key, "AB"), num_turns=2)
    before = service.result(ref)
    other = JobRef("t", "other")
    service.submit("other")
    (other_key,) = [k for k in replica.take() if k.ref == other]
    replica.make(*tokens(other_key, "XYZ"), num_turns=3)
    with redis.Redis.from_url(redis_url) as client:
        # Same length, other tokens: then one entry less than we expect.
        client.delete(service.keys.out(ref))
        _copy(client, service.keys.out(other), service.keys.out(ref), num_entries=2)
    replica.make(*tokens(key, "C", start=3), num_turns=2)
    assert key not in replica.table
    assert key in replica.stops()
    assert len(service.result(ref).raw) == len(before.raw) - 1


def test_a_cancelled_job_is_dropped_at_its_next_step(service: Service, replica: Replica) -> None:
    ref = service.submit("job")
    (key,) = replica.take()
    replica.make(*tokens(key, "A"))
    service.connection.run(functions.cancel(service.keys, ref))
    replica.make(*tokens(key, "B", start=2), num_turns=2)
    assert replica.stops() == [key]
    result = service.result(ref)
    assert result.ids == (65,)
    assert result.finish is not None
    assert result.finish.reason is FinishReason.CANCELLED


def test_a_beat_drops_what_is_not_ours_and_adopts_what_is(service: Service, replica: Replica) -> None:
    ref = service.submit("job")
    (key,) = replica.take()
    service.connection.run(functions.cancel(service.keys, ref))
    service.submit("assigned-but-lost")
    (claimed,) = service.claim(replica.session.id)
    replica.publisher.beat_soon()
    replica.make()
    assert replica.stops() == [key]
    assert replica.adopted == [JobKey(claimed.ref, claimed.mk)]


def test_a_fenced_session_drops_all_and_starts_anew(service: Service, replica: Replica) -> None:
    ref = service.submit("job")
    (key,) = replica.take()
    replica.make(*tokens(key, "A"))
    old = replica.session.id
    service.connection.run(functions.reap(service.keys, 0, old))
    replica.make(*tokens(key, "B", start=2), num_turns=2)
    assert replica.stops() == [key]
    assert len(replica.table) == 0
    assert replica.session.id != old
    assert replica.session.is_open
    (again,) = replica.take()
    assert again.claim == JobKey(ref, 2)
    replica.make(*tokens(again, "B", start=2), end(again), num_turns=3)
    result = service.result(ref)
    assert (result.text, result.ids) == ("AB", (65, 66))


def test_a_silent_engine_gets_no_beat(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    replica.connection.sent.clear()
    real = time.monotonic

    def half_a_lease_later() -> float:
        return real() + 11

    monkeypatch.setattr(time, "monotonic", half_a_lease_later)
    replica.make()
    assert replica.connection.sent == []
    replica.pulse.stamp()
    replica.make()
    assert replica.connection.sent == ["ts1_beat"]


def test_a_full_redis_loses_nothing_and_still_takes_ends(
    service: Service, replica: Replica, redis_url: str
) -> None:
    going, ending = service.submit("going"), service.submit("ending")
    keys = {key.ref: key for key in replica.take()}
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        replica.make(*tokens(keys[going], "A"), end(keys[ending], FinishReason.STOP), num_turns=2)
        assert service.result(going).ids == ()
        assert service.result(ending).finish is not None
        client.config_set("maxmemory", 0)
    replica.make(num_turns=2)
    assert service.result(going).ids == (65,)


@pytest.mark.parametrize(
    ("code", "status"), [("PromptTooLong", JobStatus.FAILED), ("StepFailed", JobStatus.WAITING)]
)
def test_failures_are_final_or_tried_again(
    service: Service, replica: Replica, code: str, status: JobStatus
) -> None:
    ref = service.submit("job")
    (key,) = replica.take()
    failure = JobFailure(code=code, message="so it is", data={"limit": 5})
    replica.make(*tokens(key, "A"), end(key, FinishReason.FAILED, failure), num_turns=2)
    info = service.info(ref)
    assert info.status is status
    assert info.failure == failure
    assert service.result(ref).ids == (65,), "what was made before the failure is kept"
    assert len(replica.table) == 0


def test_what_comes_late_of_a_dropped_life_does_not_end_the_next(service: Service, replica: Replica) -> None:
    ref = service.submit("job")
    (former,) = replica.take()
    replica.make(*tokens(former, "A"), *tokens(former, "C", start=7), num_turns=2)  # a gap: dropped, yet ours
    assert former not in replica.table
    replica.publisher.beat_soon()
    replica.make()
    assert replica.adopted == [JobKey(ref, 1)]
    new = replica.table.expect(replica.adopted[0])
    assert new == JobKey(ref, 1, life=1)
    assert replica.table.expect(JobKey(ref, 1)) is None
    replica.make(*tokens(former, "D", start=3))
    assert set(replica.stops()) == {former}


def test_tokens_of_a_dropped_job_make_the_engine_forget_it(replica: Replica) -> None:
    stranger = JobKey(JobRef("t", "stranger"), 1)
    replica.make(*tokens(stranger, "A"))
    assert replica.stops() == [stranger]


def _roll_back(url: str, stream: str, *, keep: int) -> None:
    """Leaves a stream as it was some entries ago, as a restart from an older file does."""
    with redis.Redis.from_url(url) as client:
        client.rename(stream, "aside")
        _copy(client, "aside", stream, num_entries=keep)


def _copy(client: redis.Redis, source: str, target: str, *, num_entries: int) -> None:
    for entry_id, fields in cast("list[Any]", client.xrange(source, count=num_entries)):
        client.xadd(target, fields, id=entry_id)
