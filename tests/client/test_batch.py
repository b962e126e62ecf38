from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from thinkstream_client import (
    AsyncClient,
    BatchResult,
    Client,
    InvalidRequest,
    JobCancelled,
    PromptTooLong,
    SamplingParams,
    read_lines,
)
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import tenant_set

if TYPE_CHECKING:
    from .conftest import Worker

PROMPTS = ["x" * n for n in range(1, 601)]


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def first_ids(results: list[BatchResult]) -> list[int]:
    return sorted(one.result.token_ids[0] for one in results if one.result is not None)


def test_every_item_is_answered_once(client: Client, worker: Worker) -> None:
    worker.start()
    batch = client.batch(PROMPTS, sampling=SamplingParams(max_tokens=20), id="night")
    results = list(batch.results())
    assert first_ids(results) == list(range(1, 601))
    assert {one.custom_id for one in results} == {f"item-{n}" for n in range(1, 601)}
    progress = batch.progress
    assert (progress.submitted, progress.started, progress.done, progress.failed) == (600, 600, 600, 0)
    assert progress.tokens == 600 * 20
    assert client.job("night.item-7").status() == "done"


def test_results_come_as_jobs_end(client: Client, worker: Worker) -> None:
    worker.start()
    lines = ['{"id": "long", "prompt": "a", "max_tokens": 320}', '{"id": "short", "prompt": "b"}']
    assert [one.custom_id for one in client.batch(read_lines(lines)).results()] == ["short", "long"]


def test_bad_lines_and_failed_jobs_leave_the_others_alone(client: Client, worker: Worker) -> None:
    worker.start()
    lines = ['{"id": "a", "prompt": "Hello"}', "oops", '{"id": "с/b", "prompt": "too long"}']
    found = {one.custom_id: one for one in client.batch(read_lines(lines)).results()}
    assert found["a"].result is not None
    assert isinstance(found["#line-2"].error, InvalidRequest) and found["#line-2"].job_id == ""
    assert isinstance(found["с/b"].error, PromptTooLong) and found["с/b"].job_id


def test_no_more_in_flight_than_asked(client: Client, worker: Worker) -> None:
    batch = client.batch(PROMPTS[:50], max_in_flight=8)
    seen: list[int] = []

    def watch() -> None:
        seen.append(len(client.jobs()))
        worker.start()

    watcher = threading.Timer(0.5, watch)
    watcher.start()
    assert len(list(batch.results())) == 50
    watcher.join()
    assert seen == [8]


def test_full_queue_slows_the_batch(client: Client, worker: Worker) -> None:
    operator = Connection(client.settings)
    operator.run(tenant_set(client.settings.keys, 0, "small", max_jobs=20))
    operator.close()
    worker.start()
    results = list(client.batch(PROMPTS[:50], tenant="small").results())
    assert first_ids(results) == list(range(1, 51))


def test_second_run_finds_the_jobs_of_the_first(client: Client, worker: Worker) -> None:
    worker.start()
    for result in client.batch(PROMPTS[:40], id="again").results():
        assert result.result is not None
        break
    assert not [one for one in threading.enumerate() if one.name.startswith("thinkstream")]
    assert first_ids(list(client.batch(PROMPTS[:40], id="again").results())) == list(range(1, 41))
    assert len(client.jobs(limit=1000)) == 40


def test_same_id_twice_is_an_error(client: Client, worker: Worker) -> None:
    worker.start()
    items = [next(read_lines(['{"id": "a", "prompt": "Hello"}'])) for _ in range(2)]
    errors = [one.error for one in client.batch(items).results()]
    assert [type(error) for error in errors if error is not None] == [InvalidRequest]


def test_tags_and_partial_text(client: Client, worker: Worker) -> None:
    worker.start()
    lines = ['{"id": "a", "prompt": "Hello", "tags": ["own"]}', '{"id": "b", "prompt": "too long"}']
    found = {one.custom_id: one.text for one in client.batch(read_lines(lines), tags=["night"]).results()}
    assert found == {"a": "5 6 7 8 9 10 11 12 !", "b": ""}
    assert {job.tags for job in client.jobs(tag="night")} == {("own", "night"), ("night",)}
    with pytest.raises(InvalidRequest, match="tags"):
        next(client.batch(["a"], tags="night").results())


def test_cancel(client: Client, worker: Worker) -> None:
    worker.start(allowed=2)
    batch = client.batch(PROMPTS[:10], max_in_flight=5)
    threading.Timer(0.5, lambda: worker.allow(None)).start()
    results: list[BatchResult] = []
    for result in batch.results():
        if not results:
            batch.cancel()
        results.append(result)
    assert all(isinstance(one.error, JobCancelled) for one in results if one.result is None)
    assert 1 <= len(results) < 10


def test_batch_goes_on_with_another_worker(client: Client, worker: Worker, next_worker: Worker) -> None:
    worker.start(allowed=5)

    def replace_worker() -> None:
        worker.die()
        next_worker.start()

    killer = threading.Timer(0.5, replace_worker)
    killer.start()
    batch = client.batch(PROMPTS[:64], sampling=SamplingParams(max_tokens=200))
    assert first_ids(list(batch.results())) == list(range(1, 65))
    killer.join()
    assert batch.progress.tokens == 64 * 200


async def test_async_batch(redis_url: str, worker: Worker) -> None:
    worker.start()
    async with AsyncClient(redis_url) as client:
        batch = client.batch(PROMPTS[:300])
        results = [result async for result in batch.results()]
        assert first_ids(results) == list(range(1, 301))
        assert batch.progress.done == 300
        stopped = client.batch(PROMPTS[:20], id="stopped")
        async for _ in stopped.results():
            await stopped.cancel()
