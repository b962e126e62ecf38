from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from thinkstream_client import AsyncClient, Client, InvalidRequest, RedisSettings, TenantInfo
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.records import SessionId

SPREAD = 4


@pytest.fixture
def settings(redis_url: str) -> RedisSettings:
    """A namespace of several partitions, which is what a Cluster has."""
    return RedisSettings(redis_url, num_partitions=SPREAD)


@pytest.fixture
def client(settings: RedisSettings) -> Iterator[Client]:
    with Client(settings=settings) as client:
        yield client


@pytest.fixture
def operator(settings: RedisSettings) -> Iterator[Connection]:
    connection = Connection(settings)
    yield connection
    connection.close()


def test_status_joins_all_partitions(client: Client, operator: Connection) -> None:
    keys, session = client.settings.keys, SessionId("r.1")
    for p in keys.partitions:
        operator.run(
            functions.hello(
                keys, p, session, "n", replica="r", slots=8, lease_ms=60_000, info={"device": "cpu"}
            )
        )
    client.submit_many(["a"] * 20, tenant="small")
    client.submit_many(["a"] * 10, tenant="large", priority="low")
    num_claimed = sum(len(operator.run(functions.claim(keys, p, session, 1))) for p in keys.partitions)
    load = {"waiting": "3", "free_blocks": "7", "num_blocks": "9", "tokens": "many"}
    operator.run(functions.beat(keys, 0, session, "n", draining=True, info=load))
    found = client.status()
    (replica,) = found.replicas
    assert (replica.slots, replica.owned, replica.draining) == (8, num_claimed, True)
    assert replica.load == {"waiting": 3, "free_blocks": 7, "num_blocks": 9}  # as far as it is a number
    assert found.backlog.running == num_claimed
    assert found.backlog.num_jobs == 30 - num_claimed
    assert found.backlog.classes[2].by_tenant == {"large": 10}
    assert [(one.tenant, one.num_queued + one.num_running) for one in found.tenants] == [
        ("large", 10),
        ("small", 20),
    ]
    assert found.server.name == "Valkey"


def test_tenant_set_holds_in_each_partition(client: Client, operator: Connection) -> None:
    now = client.tenant_set("small", weight=2.5, max_jobs=1)
    assert (now.weight, now.max_jobs, now.max_running) == (2.5, 1, 0)
    now = client.tenant_set("small", max_jobs=0, max_running=3)
    assert (now.weight, now.max_jobs, now.max_running) == (2.5, 0, 3)
    keys = client.settings.keys
    for p in keys.partitions:
        (tenant,) = operator.run(functions.tenants(keys, p))
        assert tenant == now
    assert client.tenant_set("new").weight == 1
    with pytest.raises(InvalidRequest, match="weight"):
        client.tenant_set("small", weight=0)


def test_tenant_drop_leaves_it_as_one_never_set(client: Client) -> None:
    client.tenant_set("small", weight=2.5, max_jobs=1, max_bytes=90, max_running=1, max_tokens_per_s=5)
    client.tenant_set("other", weight=3)
    client.submit("Hello", tenant="small")
    now = client.tenant_drop("small")
    assert now == replace(TenantInfo(tenant="small"), num_queued=1, num_queued_bytes=now.num_queued_bytes)
    client.submit("Hello", tenant="small")
    assert client.tenant_drop("other") == TenantInfo(tenant="other")
    assert client.tenant_drop("nobody") == TenantInfo(tenant="nobody")
    assert [one.tenant for one in client.status().tenants] == ["small"]
    with pytest.raises(InvalidRequest, match="tenant: got 'a b'"):
        client.tenant_drop("a b")


async def test_both_clients_tell_the_same(client: Client, settings: RedisSettings) -> None:
    client.submit("Hello", tenant="small")
    async with AsyncClient(settings=settings) as other:
        assert await other.status() == client.status()
        assert (await other.tenant_set("small", max_bytes=5)).max_bytes == 5
        assert (await other.tenant_drop("small")).max_bytes == 0
