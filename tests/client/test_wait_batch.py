"""Waiting for the end of a batch, in both clients, while a worker without a model does it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis

from thinkstream_client import AsyncClient, BatchNotFound, Client, InvalidRequest
from thinkstream_client.keys import Keys

if TYPE_CHECKING:
    from .conftest import Worker


def test_wait_submits_everything_and_reads_nothing(redis_url: str, worker: Worker) -> None:
    worker.start()
    with Client(redis_url) as client:
        batch = client.batch(["one", "two", "too long"] * 50, id="b", tenant="small", max_in_flight=4)
        ended = batch.wait(timeout_s=20)
        assert (ended.num_jobs, ended.done, ended.failed) == (150, 100, 50)
        assert batch.progress.submitted == 150
        assert client.wait_batch("b", 1, tenant="small") == ended
        again = client.batch(["one", "two", "too long"] * 50, id="b", tenant="small")
        assert sum(result.error is None for result in again.results()) == 100
        assert client.wait_batch("b", 0, tenant="small") == ended, "nothing was submitted again"


def test_whoever_waits_is_woken_by_the_end(redis_url: str, worker: Worker) -> None:
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as server:
        client.submit_many(["one", "two"], batch="nightly")
        found: list[int] = []
        waiting = threading.Thread(target=lambda: found.append(client.wait_batch("nightly", 20).done))
        waiting.start()
        time.sleep(0.1)
        num_before = server.info("stats")["total_commands_processed"]
        time.sleep(0.5)
        num_asked = server.info("stats")["total_commands_processed"] - num_before
        assert num_asked <= 2, "it polls"
        worker.start()
        waiting.join(20)
        assert found == [2]


async def test_both_faces_agree(redis_url: str, worker: Worker) -> None:
    worker.start()
    async with AsyncClient(redis_url) as client:
        await client.submit_many(["one"], batch="small")
        batch = client.batch(["one", "two"], id="large")
        waits = [client.wait_batch("small"), batch.wait(20), *(client.wait_batch("small") for _ in range(20))]
        ended = await asyncio.gather(*waits)
        assert [one.done for one in ended] == [1, 2, *([1] * 20)]


def test_results_and_wait_end_the_same_batch(redis_url: str, worker: Worker) -> None:
    worker.start()
    with Client(redis_url) as client:
        batch = client.batch(iter(["one"] * 9), max_in_flight=2)
        assert sum(1 for _ in batch.results()) == 9
        assert client.wait_batch(batch.id, 1).done == batch.wait(1).done == 9


def test_a_batch_that_is_cancelled_ends(redis_url: str, worker: Worker) -> None:
    worker.start(allowed=12)
    with Client(redis_url) as client:
        batch = client.batch(["one"] * 20, max_in_flight=3)
        for _ in batch.results():
            batch.cancel()
        ended = client.wait_batch(batch.id, 1)
        assert 0 < ended.num_jobs == batch.progress.submitted < 20


def test_waits_that_end_otherwise(redis_url: str) -> None:
    with Client(redis_url) as client:
        with pytest.raises(BatchNotFound, match="batch nobody: not found"):
            client.wait_batch("nobody")
        with pytest.raises(InvalidRequest, match="batch: got 'a b'"):
            client.wait_batch("a b")
        client.submit_many(["one"], batch="slow")
        started_s = time.monotonic()
        with pytest.raises(TimeoutError, match="batch slow"):
            client.wait_batch("slow", 0.2)
        assert 0.2 <= time.monotonic() - started_s < 2


def test_a_batch_that_redis_forgets_is_not_waited_for(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkstream_client.core.batch_end.CHECK_EVERY_S", 0.1)
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as server:
        client.submit_many(["one"], batch="lost")
        threading.Timer(0.2, lambda: server.delete(Keys().batch(0, "default", "lost"))).start()
        with pytest.raises(BatchNotFound):
            client.wait_batch("lost", 20)


def test_a_batch_goes_on_after_redis_has_lost_everything(redis_url: str, worker: Worker) -> None:
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as server:
        batch = client.batch(["one", "two"])
        threading.Timer(0.1, lambda: (server.flushall(), worker.start())).start()
        assert sum(result.error is None for result in batch.results()) == 2
        assert client.wait_batch(batch.id, 1).done == 2, "closed again behind the jobs"
