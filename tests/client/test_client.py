from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import redis

from thinkstream_client import (
    Client,
    ConfigError,
    Conflict,
    FinishReason,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobNotFound,
    JobStatus,
    PromptTooLong,
    QueueFull,
    Request,
    ResultExpired,
    SamplingParams,
    ServiceUnavailable,
)
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import sweep, tenant_set
from thinkstream_client.records import JobRef

if TYPE_CHECKING:
    from .conftest import Worker

EIGHT = tuple(range(5, 13))
EIGHT_TEXT = "5 6 7 8 9 10 11 12 !"


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as raw:
        yield raw


def test_result(client: Client, worker: Worker) -> None:
    worker.start()
    job = client.submit("Hello", temperature=0)
    result = job.result(timeout_s=10)
    assert (result.token_ids, result.text) == (EIGHT, EIGHT_TEXT)
    assert result.finish_reason is FinishReason.LENGTH
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (3, 8)
    assert job.status() is JobStatus.DONE
    assert job.text() == EIGHT_TEXT


def test_stream_gives_tokens_as_they_come(client: Client, worker: Worker) -> None:
    worker.start(allowed=2)
    stream = client.submit("Hello").stream(timeout_s=10)
    assert [next(stream).index, next(stream).index] == [1, 2]
    assert stream.finish is None
    worker.allow(None)
    rest = list(stream)
    assert [chunk.index for chunk in rest] == [3, 4, 5, 6, 7, 8, 8]
    assert rest[-1].token_ids == () and rest[-1].text == "!"
    assert stream.finish is not None and stream.finish.num_tokens == 8


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("start", [0, 1, 7, 16, 17, 20, 40])
def test_stream_from_any_index(client: Client, worker: Worker, live: bool, start: int) -> None:
    worker.start()
    job = client.submit("Hello", max_tokens=40, stream=live)
    job.result(timeout_s=10)
    chunks = list(client.job(job.id).stream(start, timeout_s=10))
    ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
    assert ids == list(range(5 + start, 45))


@pytest.mark.parametrize("start", [-1, True, "3", None])
def test_start_of_a_stream_is_a_number_of_tokens(client: Client, start: object) -> None:
    job = client.submit("Hello")
    with pytest.raises(InvalidRequest, match=r"^from_index: "):
        job.stream(start)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_start_behind_the_end(client: Client, worker: Worker) -> None:
    worker.start()
    job = client.submit("Hello")
    job.result(timeout_s=10)
    assert next(job.stream(8, timeout_s=10)).text == "!"
    with pytest.raises(InvalidRequest, match="from_index: got 9, allowed: up to 8"):
        next(job.stream(9, timeout_s=10))


def test_another_process_goes_on_where_the_first_stopped(
    client: Client, worker: Worker, redis_url: str
) -> None:
    worker.start(allowed=3)
    job = client.submit("Hello")
    stream = job.stream(timeout_s=10)
    text = "".join(next(stream).text for _ in range(3))
    client.close()
    worker.allow(None)
    with Client(redis_url) as second:
        text += "".join(chunk.text for chunk in second.job(job.id).stream(3, timeout_s=10))
    assert text == EIGHT_TEXT


def test_stream_goes_on_after_the_worker_died(client: Client, worker: Worker, next_worker: Worker) -> None:
    worker.start(allowed=3)
    stream = client.submit("Hello").stream(timeout_s=10)
    text = "".join(next(stream).text for _ in range(3))
    worker.die()
    next_worker.start()
    assert text + "".join(chunk.text for chunk in stream) == EIGHT_TEXT


def test_lost_connection_changes_nothing(
    client: Client, worker: Worker, next_worker: Worker, raw: redis.Redis
) -> None:
    worker.start(allowed=3)
    stream = client.submit("Hello").stream(timeout_s=10)
    text = "".join(next(stream).text for _ in range(3))
    worker.stop()
    killer = threading.Timer(0.2, lambda: raw.client_kill_filter(_type="normal", skipme=True))
    killer.start()
    with pytest.raises(TimeoutError):
        next(client.submit("never").stream(timeout_s=0.5))
    killer.join()
    worker.die()
    next_worker.start()
    text += "".join(chunk.text for chunk in stream)
    assert text == EIGHT_TEXT


def test_vanished_job_is_submitted_again_by_who_holds_it(
    client: Client, worker: Worker, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkstream_client.core.follow.STATUS_EVERY_S", 0.2)
    job = client.submit("Hello")
    raw.flushdb()
    worker.start()
    assert job.result(timeout_s=10).token_ids == EIGHT
    raw.flushdb()
    with pytest.raises(JobNotFound):  # its end was seen
        job.result(timeout_s=10)


def test_absent_job(client: Client) -> None:
    job = client.job("nobody")
    for asking in (job.status, job.info, job.cancel, job.result, lambda: next(job.stream())):
        with pytest.raises(JobNotFound):
            asking()


def test_expired_result(client: Client, worker: Worker, raw: redis.Redis) -> None:
    worker.start()
    job = client.submit("Hello")
    job.result(timeout_s=10)
    raw.delete(client.settings.keys.out(JobRef("default", job.id)))
    with pytest.raises(ResultExpired):
        client.job(job.id).result(timeout_s=10)


def test_cancel_keeps_what_there_is(client: Client, worker: Worker) -> None:
    worker.start(allowed=3)
    job = client.submit("Hello")
    stream = job.stream(timeout_s=10)
    ids = [next(stream).token_ids for _ in range(3)]
    assert job.cancel() is JobStatus.CANCELLED
    with pytest.raises(JobCancelled) as caught:
        next(stream)
    assert ids == [(5,), (6,), (7,)]
    assert caught.value.partial is not None and caught.value.partial.token_ids == (5, 6, 7)
    with pytest.raises(JobCancelled) as caught:
        job.result(timeout_s=10)
    assert caught.value.partial is not None and caught.value.partial.text == "5 6 7 "
    assert job.cancel() is JobStatus.CANCELLED


def test_failure_is_typed(client: Client, worker: Worker) -> None:
    worker.start()
    with pytest.raises(PromptTooLong) as caught:
        client.submit("too long").result(timeout_s=10)
    assert (caught.value.num_tokens, caught.value.limit) == (9, 4)
    assert caught.value.partial is not None and caught.value.partial.finish_reason is FinishReason.FAILED


def test_same_id(client: Client) -> None:
    first = client.submit("Hello", id="mine", temperature=0)
    again = client.submit("Hello", id="mine", temperature=0)
    assert (first.id, again.id) == ("mine", "mine")
    with pytest.raises(Conflict):
        client.submit("Hello!", id="mine", temperature=0)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("id", {"id": "a b"}),
        ("tenant", {"tenant": ""}),
        ("priority", {"priority": "urgent"}),
        ("deadline_s", {"deadline_s": -1}),
        ("tags", {"tags": ("a b",)}),
        ("tags", {"tags": "ab"}),
        ("sampling.temperature", {"temperature": float("nan")}),
        ("sampling.max_tokens", {"max_tokens": 0}),
        ("top_q", {"top_q": 1}),
        ("sampling", {"sampling": SamplingParams(), "top_p": 1}),
        ("prompt", {"messages": [("user", "Hello")]}),
    ],
)
def test_bad_input_is_refused_before_sending(redis_url: str, field: str, wrong: dict[str, object]) -> None:
    client = Client("redis://127.0.0.1:1")  # nobody is there, and nobody is asked
    with pytest.raises(InvalidRequest) as caught:
        client.submit("Hello", **wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert caught.value.field == field
    client.close()


def test_empty_prompt_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="exactly one"):
        client.submit()
    with pytest.raises(InvalidRequest, match=r"^prompt: "):
        client.submit("")
    with pytest.raises(InvalidRequest, match=r"^messages: "):
        client.submit(messages=[])
    with pytest.raises(InvalidRequest, match=r"^token_ids: "):
        client.submit(token_ids=[])


def test_nobody_there() -> None:
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:1"), Client("redis://127.0.0.1:1"):
        pass


def test_no_service_known(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("THINKSTREAM_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("THINKSTREAM_URL", raising=False)
    with pytest.raises(ServiceUnavailable, match="thinkstream up"):
        Client()


def test_foreign_namespace(client: Client, raw: redis.Redis, redis_url: str) -> None:
    raw.hset(client.settings.keys.meta, "protocol", "99")
    with pytest.raises(ConfigError, match="99"), Client(redis_url):
        pass


def test_full_queue(client: Client, worker: Worker, redis_url: str) -> None:
    operator = Connection(client.settings)
    operator.run(tenant_set(client.settings.keys, 0, "small", max_jobs=2))
    operator.close()
    client.submit_many(["one", "two"], tenant="small")
    with pytest.raises(QueueFull) as caught:
        client.submit("three", tenant="small")
    assert caught.value.retry_ms > 0
    worker.start()
    assert client.submit("three", tenant="small", block=True, timeout_s=10).result(timeout_s=10).text


def test_submit_many_in_order(client: Client, worker: Worker) -> None:
    worker.start()
    jobs = client.submit_many([*("x" * n for n in range(1, 300)), Request(token_ids=(1,))])
    assert len({job.id for job in jobs}) == 300
    assert [jobs[i].result(timeout_s=20).token_ids[0] for i in (0, 130, 298)] == [1, 131, 299]
    with pytest.raises(InvalidRequest, match="item 2: prompt"):
        client.submit_many(["a", ""])


def test_tags(client: Client) -> None:
    night = client.submit("a", tags=("night",))
    client.submit("b", tags=("day",))
    assert [job.ref.job_id for job in client.jobs(tag="night")] == [night.id]
    assert len(client.jobs()) == 2
    assert client.jobs(tenant="nobody") == []


def test_wait_ready(client: Client, worker: Worker) -> None:
    with pytest.raises(ServiceUnavailable, match="no replica is alive"):
        client.wait_ready(timeout_s=0.05)
    worker.start()
    client.wait_ready(timeout_s=5)
    assert [replica.replica for replica in client.replicas()] == ["test"]


def test_timeout(client: Client) -> None:
    job = client.submit("Hello")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        job.result(timeout_s=0.2)
    assert time.monotonic() - start < 2


def test_deadline(client: Client) -> None:
    job = client.submit("Hello", deadline_s=0.05)
    time.sleep(0.06)
    operator = Connection(client.settings)
    operator.run(sweep(client.settings.keys, 0))
    operator.close()
    with pytest.raises(JobExpired):
        job.result(timeout_s=5)


def test_confirm_needs_an_append_only_file(client: Client, worker: Worker) -> None:
    worker.start()
    with pytest.raises(ConfigError, match="append-only"):
        client.submit("Hello").result(confirm=True, timeout_s=10)


@pytest.mark.parametrize(("policy", "least_s", "most_s"), [("always", 0.0, 2.0), ("everysec", 2.0, 10.0)])
def test_confirm(
    any_redis_url: str, make_worker: type[Worker], policy: str, least_s: float, most_s: float
) -> None:
    with redis.Redis.from_url(any_redis_url) as raw:
        raw.config_set("appendfsync", policy)
        raw.config_set("appendonly", "yes")
        other = make_worker(any_redis_url).start()
        try:
            with Client(any_redis_url) as client:
                job = client.submit("Hello")
                assert job.result(timeout_s=20).token_ids == EIGHT
                start_s = time.monotonic()
                result = job.result(confirm=True, timeout_s=20)
                took_s = time.monotonic() - start_s
        finally:
            other.close()
            raw.config_set("appendonly", "no")
            raw.config_set("appendfsync", "everysec")
    assert result.token_ids == EIGHT
    assert least_s < took_s < most_s
