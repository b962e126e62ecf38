from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import redis

from thinkstream_client import (
    AsyncClient,
    Client,
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    JobStatus,
    ServiceUnavailable,
    TokenChunk,
)

if TYPE_CHECKING:
    from .conftest import Worker


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as client:
        yield client


async def test_result_and_status(client: AsyncClient, worker: Worker) -> None:
    worker.start()
    job = await client.submit("Hello")
    result = await job.result(timeout_s=10)
    assert result.text == await job.text() == "5 6 7 8 9 10 11 12 !"
    assert await job.status() is JobStatus.DONE
    assert (await job.info()).n == 8


@pytest.mark.parametrize("start", [0, 20])
async def test_both_clients_read_the_same(
    client: AsyncClient, worker: Worker, redis_url: str, start: int
) -> None:
    worker.start()
    job = await client.submit("Hello", max_tokens=40, stream=False)
    chunks: list[TokenChunk] = [chunk async for chunk in job.stream(start, timeout_s=10)]
    with Client(redis_url) as other:
        assert list(other.job(job.id).stream(start, timeout_s=10)) == chunks
    assert chunks[-1].index == 40


async def test_many_streams_at_once(client: AsyncClient, worker: Worker) -> None:
    worker.start()
    jobs = await client.submit_many(["x" * n for n in range(1, 33)])
    results = await asyncio.gather(*(job.result(timeout_s=20) for job in jobs))
    assert [result.token_ids[0] for result in results] == list(range(1, 33))


async def test_hundreds_of_streams_share_a_few_connections(
    client: AsyncClient, worker: Worker, redis_url: str
) -> None:
    jobs = await client.submit_many(["x" * n for n in range(1, 201)])
    twice = [*jobs, *jobs[:50]]
    tasks = [asyncio.create_task(job.result(timeout_s=20)) for job in twice]
    await asyncio.sleep(0.6)
    with redis.Redis.from_url(redis_url) as raw:
        assert len(raw.client_list()) < 30
    for task in tasks[200:210]:
        task.cancel()
    worker.start()
    results = await asyncio.gather(*tasks[:200], *tasks[210:])
    assert [result.token_ids[0] for result in results[:200]] == list(range(1, 201))
    assert [result.job_id for result in results[200:]] == [job.id for job in jobs[10:50]]


async def test_client_closed_under_a_reader(redis_url: str) -> None:
    client = AsyncClient(redis_url)
    task = asyncio.create_task((await client.submit("Hello")).result())
    await asyncio.sleep(0.1)
    await client.close()
    with pytest.raises((asyncio.CancelledError, ServiceUnavailable)):
        await asyncio.wait_for(task, 5)


async def test_cancel(client: AsyncClient, worker: Worker) -> None:
    worker.start(allowed=2)
    job = await client.submit("Hello")
    stream = job.stream(timeout_s=10)
    assert [(await anext(stream)).index, (await anext(stream)).index] == [1, 2]
    await job.cancel()
    with pytest.raises(JobCancelled):
        await anext(stream)
    assert stream.finish is not None and stream.finish.num_tokens == 2


async def test_task_cancelled_while_reading(client: AsyncClient, worker: Worker) -> None:
    job = await client.submit("Hello")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(job.result(), 0.2)
    worker.start()
    assert (await job.result(timeout_s=10)).text


async def test_errors(client: AsyncClient) -> None:
    with pytest.raises(JobNotFound):
        await client.job("nobody").result()
    with pytest.raises(InvalidRequest):
        await client.submit("Hello", top_p=2)
    with pytest.raises(ServiceUnavailable):
        await client.wait_ready(timeout_s=0.05)
    assert await client.replicas() == [] and await client.jobs() == []


async def test_history(redis_url: str, worker: Worker) -> None:
    worker.start()
    async with AsyncClient(redis_url) as client:
        job = await client.submit("Hello")
        await job.result(timeout_s=10)
        history = await job.history()
        assert [one.session for one in history.tenures] == [worker.session]
        assert history.finish is not None and history.finish.usage.completion_tokens == 8
