"""The life of jobs on Redis as people run it: over TLS, behind Sentinels, in a Cluster; and failovers."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from infra.topologies import ClusterSetup, SentinelSetup, TlsServer
from tests.support.service import ThreadedService
from tests.support.worker import text_of, token_of

from thinkstream_client import AsyncClient, Client
from thinkstream_client.errors import ConfigError, ServiceUnavailable, StreamForked
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import AsyncConnection, Connection
from thinkstream_client.protocol.namespace import settled
from thinkstream_client.protocol.server_check import server_check
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

Setup = ClusterSetup | SentinelSetup | TlsServer
DEBIAN = shutil.which("redis-server")


def _binary(kind: str) -> Path | None:
    if kind == "valkey":
        return None
    if DEBIAN is None:
        pytest.skip("redis-server is missing")
    return Path(DEBIAN)


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSetup]:
    setup = SentinelSetup(tmp_path_factory.mktemp("sentinel"), binary=_binary("redis"))
    yield from _started(setup)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSetup]:
    yield from _started(ClusterSetup(tmp_path_factory.mktemp("cluster"), num_replicas=1))


@pytest.fixture(scope="module")
def debian_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSetup]:
    yield from _started(ClusterSetup(tmp_path_factory.mktemp("debian"), binary=_binary("redis")))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    binary = _binary("redis")  # the embedded server is built without TLS
    assert binary is not None
    yield from _started(TlsServer(tmp_path_factory.mktemp("tls"), binary))


def _started(setup: Any) -> Iterator[Any]:
    try:
        setup.start()
        yield setup
    finally:
        setup.stop()


@pytest.fixture(params=["tls", "sentinel", "cluster", "debian_cluster"])
def setup(request: pytest.FixtureRequest) -> Setup:
    """Each of them in turn."""
    found: Setup = request.getfixturevalue(str(request.param))
    return found


def ids_of(job_id: str, count: int) -> tuple[int, ...]:
    return tuple(token_of(job_id, i + 1) for i in range(count))


def test_life_of_jobs(setup: Setup) -> None:
    settings = RedisSettings(setup.url, "life")
    with ThreadedService(settings), Client(settings=settings) as client:
        client.wait_ready(10)
        jobs = [client.submit("a prompt", id=f"j{i}", max_tokens=8, tags=("all",)) for i in range(24)]
        for job in jobs:
            assert "".join(chunk.text for chunk in job.stream(timeout_s=10)) == text_of(ids_of(job.id, 8))
        assert jobs[0].stream(from_index=5, timeout_s=10).__next__().index == 6
        long = client.submit("a prompt", id="long", max_tokens=4000)
        assert next(long.stream(timeout_s=10)).index == 1
        assert long.cancel() is JobStatus.CANCELLED
        assert len(client.jobs(limit=100)) == 25
        assert {job.ref.job_id for job in client.jobs(tag="all")} == {job.id for job in jobs}
        assert len(client.replicas()) == 1
        batch = client.batch(["a prompt"] * 60, id="batch", sampling=None, max_in_flight=40)
        batch.cancel()
        assert list(batch.results()) == []


async def test_life_of_jobs_on_an_event_loop(setup: Setup) -> None:
    import asyncio

    settings = RedisSettings(setup.url, "loop")
    with ThreadedService(settings):
        async with AsyncClient(settings=settings) as client:
            jobs = [await client.submit("a prompt", id=f"j{i}", max_tokens=20) for i in range(40)]
            results = await asyncio.gather(*(job.result(timeout_s=20) for job in jobs))
            assert [one.token_ids for one in results] == [ids_of(job.id, 20) for job in jobs]
            if not isinstance(setup, TlsServer | SentinelSetup) and setup.nodes[0].is_valkey:
                assert (await jobs[0].result(confirm=True, timeout_s=10)).token_ids == ids_of("j0", 20)


def test_a_namespace_keeps_its_partitions(cluster: ClusterSetup) -> None:
    settings = RedisSettings(cluster.url, "fixed", num_partitions=5)
    connection = Connection(settings)
    assert settled(connection, settings).keys.num_partitions == 5
    assert settled(connection, replace(settings, num_partitions=None)).keys.num_partitions == 5
    with pytest.raises(ConfigError, match="partitions 5, this is 7"):
        settled(connection, replace(settings, num_partitions=7))
    connection.close()
    with ThreadedService(settings), Client(settings=RedisSettings(cluster.url, "fixed")) as client:
        assert client.submit("a prompt", id="j", max_tokens=3).result(timeout_s=10).token_ids == ids_of(
            "j", 3
        )


async def test_every_primary_gets_the_functions(cluster: ClusterSetup) -> None:
    settings = RedisSettings(cluster.url, "functions")
    connection, other = Connection(settings), AsyncConnection(settings)
    calls = [functions.sweep(settings.keys, p) for p in settings.keys.partitions]
    for node in cluster.primaries:
        node.ask("FUNCTION", "FLUSH")
    connection.run_many(calls)
    for node in cluster.primaries[1:]:  # the library is lost on some: a node joined, or was emptied
        node.ask("FUNCTION", "FLUSH")
    assert all(isinstance(found, functions.Swept) for found in connection.run_many(calls))
    for node in cluster.primaries[:2]:
        node.ask("FUNCTION", "FLUSH")
    assert all(isinstance(found, functions.Swept) for found in await other.run_many(calls))
    for node in cluster.primaries:
        assert "thinkstream" in str(node.ask("FUNCTION", "LIST"))
    assert (await other.run(server_check())).append_only
    connection.close()
    await other.close()


async def test_slots_that_move_are_followed(debian_cluster: ClusterSetup) -> None:
    settings = RedisSettings(debian_cluster.url, "moved", num_partitions=1)
    connection = Connection(settings)
    settings = settled(connection, settings)
    ref = JobRef("a", "j")
    submit, status = (
        functions.submit(settings.keys, ref, Request(prompt="a prompt")),
        functions.job_status(settings.keys, ref),
    )
    assert connection.run(submit).created
    debian_cluster.move_slot_of(settings.keys.prefix(0))
    assert connection.run(submit).created is False
    debian_cluster.move_slot_of(settings.keys.prefix(0))
    assert connection.run_many([status] * 2) == [JobStatus.QUEUED] * 2
    debian_cluster.move_slot_of(settings.keys.prefix(0))
    other = AsyncConnection(settings)
    assert await other.run(submit) == functions.Submitted(created=False, status=JobStatus.QUEUED)
    debian_cluster.move_slot_of(settings.keys.prefix(0))
    assert await other.run_many([status] * 2) == [JobStatus.QUEUED] * 2
    await other.close()
    connection.close()


def failing_over(setup: ClusterSetup | SentinelSetup) -> Callable[[], None]:
    if isinstance(setup, SentinelSetup):
        return setup.fail_over
    return lambda: setup.fail_over(setup.primaries[0])


@pytest.mark.parametrize("name", ["sentinel", "cluster"])
def test_streams_go_on_over_a_failover(name: str, request: pytest.FixtureRequest) -> None:
    setup: ClusterSetup | SentinelSetup = request.getfixturevalue(name)
    settings = RedisSettings(setup.url, "failover")
    with ThreadedService(settings, step_s=0.01), Client(settings=settings) as client:
        jobs = [client.submit("a prompt", id=f"f{i}", max_tokens=150) for i in range(6)]
        read: dict[str, list[int]] = {job.id: [] for job in jobs}

        def follow(job: Any) -> None:
            try:
                for chunk in job.stream(timeout_s=60):
                    read[job.id].extend(chunk.token_ids)
            except StreamForked:  # then it says so, and the whole is there to be read again
                read[job.id] = list(job.result(timeout_s=60).token_ids)

        readers = [threading.Thread(target=follow, args=(job,)) for job in jobs]
        for reader in readers:
            reader.start()
        while min(len(ids) for ids in read.values()) < 20:
            time.sleep(0.01)
        failing_over(setup)()
        for reader in readers:
            reader.join()
        assert read == {job.id: list(ids_of(job.id, 150)) for job in jobs}


def test_a_lost_tail_is_told(sentinel: SentinelSetup) -> None:
    """Acknowledged tokens that the replica never got: the reader that has them hears of it."""
    settings = RedisSettings(sentinel.url, "lost")
    writer = Connection(settings)
    settings = settled(writer, settings)
    ref = JobRef("default", "lost")
    with Client(settings=settings) as client:
        job = client.submit("a prompt", id=ref.job_id, max_tokens=9)
        length = begin(writer, settings, "first.1", ref)
        append(writer, settings, "first.1", ref, length, [1, 2])
        wait_for_replica(sentinel)
        stream = job.stream(timeout_s=30)
        assert [next(stream).index for _ in range(2)] == [1, 2]
        primary, replica = sentinel.primary, sentinel.replica
        replica.pause()
        primary.ask("CLIENT", "KILL", "TYPE", "replica")  # it cannot come back while it hangs
        append(writer, settings, "first.1", ref, length + 2, [3, 4], before=[1, 2])
        assert [next(stream).index for _ in range(2)] == [3, 4]
        primary.kill()
        replica.resume()
        sentinel.bring_back(primary)
        again = until_served(lambda: reap_and_begin(writer, settings, ref))
        append(writer, settings, "second.1", ref, again, [7, 8, 9], before=[1, 2])
        with pytest.raises(StreamForked) as forked:
            next(stream)
        assert forked.value.at == 2
    writer.close()


def begin(connection: Connection, settings: RedisSettings, session: str, ref: JobRef) -> int:
    """Claims the job for a session and returns the length of its stream."""
    name = SessionId(session)
    connection.run(
        functions.hello(settings.keys, 0, name, "nonce", replica=session, slots=1, lease_ms=60_000, info={})
    )
    (claimed,) = connection.run(functions.claim(settings.keys, 0, name, 1))
    assert claimed.ref == ref
    return claimed.n + claimed.mk


def reap_and_begin(connection: Connection, settings: RedisSettings, ref: JobRef) -> int:
    connection.run(functions.reap(settings.keys, 0, SessionId("first.1")))
    return begin(connection, settings, "second.1", ref)


def append(
    connection: Connection,
    settings: RedisSettings,
    session: str,
    ref: JobRef,
    length: int,
    ids: list[int],
    before: list[int] | None = None,
) -> None:
    """Publishes tokens one by one; every one is acknowledged."""
    crc = wire.chain_crc(wire.initial_crc(ref.job_id), before or [])
    mk = length - len(before or [])
    for i, token_id in enumerate(ids):
        crc = wire.chain_crc(crc, [token_id])
        row = functions.StepRow(ref, length + i, wire.encode_entry([token_id], crc, "x"), mk, 1)
        step = functions.step(settings.keys, 0, SessionId(session), "nonce", [row])
        assert connection.run(step) == [functions.StepReply.OK]


def wait_for_replica(sentinel: SentinelSetup) -> None:
    with sentinel.primary.client() as client:
        assert client.execute_command("WAIT", 1, 5000) == 1


def until_served(what: Callable[[], int], timeout_s: float = 20.0) -> int:
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            return what()
        except ServiceUnavailable:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)


def test_a_certificate_of_strangers_is_refused(tls: TlsServer) -> None:
    url = tls.url.split("?", maxsplit=1)[0]
    with pytest.raises(ConfigError, match="not one that we trust"):
        Connection(RedisSettings(url)).run(server_check())
    with pytest.raises(ConfigError, match="No such file"):
        Connection(RedisSettings(f"{url}?ssl_ca_certs=/nowhere/ca.crt")).run(server_check())
    with pytest.raises(ConfigError, match="unexpected keyword"):
        Connection(RedisSettings(f"{url}?ssl_nonsense=1")).run(server_check())
