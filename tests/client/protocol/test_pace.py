"""What a refused client is told: when there may be room, by how fast the tenant's jobs end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import redis

from thinkstream_client import Client, QueueFull, Request
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.records import JobRef
from thinkstream_client.settings import RedisSettings

if TYPE_CHECKING:
    from tests.client.conftest import Worker

KEYS, TENANT = Keys(), "small"


@pytest.fixture
def connection(redis_url: str) -> Iterator[Connection]:
    connection = Connection(RedisSettings(redis_url))
    connection.run(functions.tenant_set(KEYS, 0, TENANT, max_jobs=2))
    yield connection
    connection.close()


def submit(connection: Connection, name: str, size: int = 2) -> None:
    connection.run(functions.submit(KEYS, JobRef(TENANT, name), Request(prompt="x" * size)))


def refused_ms(connection: Connection, size: int = 2) -> int:
    with pytest.raises(QueueFull) as refused:
        submit(connection, "one-too-many", size)
    return refused.value.retry_ms


def test_the_estimate_follows_the_ends(connection: Connection, redis_url: str) -> None:
    for name in ("a", "b"):
        submit(connection, name)
    assert 100 <= refused_ms(connection) <= 500, "nothing has ended yet: the time waited so far"
    for number in range(8):
        connection.run(functions.cancel(KEYS, JobRef(TENANT, f"{number - 1}" if number else "a")))
        submit(connection, f"{number}")
        time.sleep(0.1)
    with redis.Redis.from_url(redis_url) as server:
        assert 0 < server.pttl(KEYS.pace(0, TENANT)) <= 600_000
        now_ms = server.time()[0] * 1000
        every_ms = float(server.hget(KEYS.pace(0, TENANT), "every_ms") or 0)
        assert 30 <= every_ms <= 400
        for every, last, expected in ((250, now_ms + 9000, 250), (1, now_ms + 9000, 100), (9e7, 0, 60_000)):
            server.hset(KEYS.pace(0, TENANT), mapping={"every_ms": every, "last": last})
            assert refused_ms(connection) == expected


def test_a_silent_tenant_waits_as_long_as_nothing_has_ended(connection: Connection, redis_url: str) -> None:
    for name in ("a", "b"):
        submit(connection, name)
    with redis.Redis.from_url(redis_url) as server:
        last = server.time()[0] * 1000 - 20_000
        server.hset(KEYS.pace(0, TENANT), mapping={"every_ms": 200, "last": last})
    assert 20_000 <= refused_ms(connection) <= 25_000


def test_bytes_wait_for_as_many_jobs_as_must_go(connection: Connection, redis_url: str) -> None:
    for name in ("a", "b"):
        submit(connection, name, 1000)
    (tenant,) = connection.run(functions.tenants(KEYS, 0))
    connection.run(functions.tenant_set(KEYS, 0, TENANT, max_jobs=0, max_bytes=tenant.num_queued_bytes))
    with redis.Redis.from_url(redis_url) as server:
        last = server.time()[0] * 1000 + 9000
        server.hset(KEYS.pace(0, TENANT), mapping={"every_ms": 300, "last": last})
    assert refused_ms(connection, 900) == 300
    assert refused_ms(connection, 1900) == 600


def test_no_caps_no_pace(redis_url: str, worker: Worker) -> None:
    worker.start()
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as server:
        assert client.submit("one", tenant="free").result().token_ids
        assert not server.exists(KEYS.pace(0, "free"))


def test_blocking_submit_waits_for_room(redis_url: str, worker: Worker, connection: Connection) -> None:
    with Client(redis_url) as client:
        jobs = client.submit_many(["one", "two"], tenant=TENANT)
        with pytest.raises(QueueFull):
            client.submit("three", tenant=TENANT)
        started_s = time.monotonic()
        with pytest.raises(QueueFull):
            client.submit("three", tenant=TENANT, block=True, timeout_s=0.3)
        assert 0.3 <= time.monotonic() - started_s < 1
        threading.Timer(0.2, worker.start).start()
        jobs.append(client.submit("three", tenant=TENANT, block=True, timeout_s=20))
        jobs += client.submit_many(["four"] * 20, tenant=TENANT, timeout_s=20)
        assert all(job.result(timeout_s=20).token_ids for job in jobs)
