from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import exceptions as foreign

from thinkstream_client.errors import (
    CommandRefused,
    ConfigError,
    JobNotFound,
    QueueFull,
    RecordInvalid,
    ServiceUnavailable,
)
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions, library
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.connection import AsyncConnection, Connection
from thinkstream_client.protocol.server_check import server_check
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

KEYS = Keys()
REF = JobRef("a", "j")
REQUEST = Request(prompt="hi")


@pytest.fixture
def raw(any_redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(any_redis_url) as client:
        yield client


@pytest.fixture
def connection(any_redis_url: str) -> Iterator[Connection]:
    connection = Connection(RedisSettings(any_redis_url))
    yield connection
    connection.close()


def test_loads_the_library_at_first_use_and_after_a_flush(connection: Connection, raw: Any) -> None:
    raw.function_flush()
    assert connection.run(functions.submit(KEYS, REF, REQUEST)).created
    raw.function_flush()
    assert connection.run(functions.cancel(KEYS, REF)) is JobStatus.CANCELLED
    raw.function_flush()
    results = connection.run_many([functions.cancel(KEYS, REF), functions.cancel(KEYS, JobRef("a", "none"))])
    assert results[0] is JobStatus.CANCELLED
    assert isinstance(results[1], JobNotFound)


@pytest.mark.parametrize(("build", "stays"), [(library.BUILD - 1, False), (library.BUILD, False), (99, True)])
def test_a_newer_library_stays(connection: Connection, raw: Any, build: int, stays: bool) -> None:
    other = (
        f"#!lua name={library.LIBRARY}\n"
        f"redis.register_function{{function_name='ts1_build', flags={{'no-writes'}},"
        f"callback=function() return {{{build}, 'other'}} end}}\n"
        "redis.register_function('ts1_cancel', function() return {'OK', 'done'} end)"
    )
    raw.function_load(other, replace=True)
    try:
        if stays:
            assert connection.run(functions.cancel(KEYS, REF)) is JobStatus.DONE
        else:
            with pytest.raises(JobNotFound):
                connection.run(functions.cancel(KEYS, REF))
    finally:
        raw.function_flush()


async def test_async(any_redis_url: str, raw: Any) -> None:
    raw.function_flush()
    connection = AsyncConnection(RedisSettings(any_redis_url))
    try:
        assert (await connection.run(functions.submit(KEYS, REF, REQUEST))).created
        raw.function_flush()
        results = await connection.run_many(
            [functions.cancel(KEYS, REF), functions.cancel(KEYS, JobRef("a", "none"))]
        )
        assert results[0] is JobStatus.CANCELLED
        assert isinstance(results[1], JobNotFound)
        with pytest.raises(JobNotFound):
            await connection.run(functions.job_info(KEYS, JobRef("a", "none")))
        assert await connection.run_many([]) == []
    finally:
        await connection.close()


def test_full_memory(connection: Connection, raw: Any) -> None:
    connection.run(functions.submit(KEYS, REF, REQUEST))
    session = SessionId("w.1")
    hello = functions.hello(KEYS, 0, session, "n", replica="w", slots=1, lease_ms=5000, info={})
    connection.run(hello)
    raw.config_set("maxmemory", 1)
    with pytest.raises(QueueFull) as caught:
        connection.run(functions.submit(KEYS, JobRef("a", "k"), REQUEST))
    assert caught.value.cap == "memory"
    # What keeps the service going and what frees memory goes on; tokens wait.
    connection.run(hello)
    assert len(connection.run(functions.claim(KEYS, 0, session, 1))) == 1
    with pytest.raises(QueueFull):
        connection.run(functions.step(KEYS, 0, session, "n", [functions.StepRow(REF, 1, b"", 1, 1)]))
    assert connection.run(functions.cancel(KEYS, REF)) is JobStatus.CANCELLED
    (refused,) = connection.run_many([functions.submit(KEYS, JobRef("a", "k"), REQUEST)])
    assert isinstance(refused, QueueFull)


def test_a_key_of_another_type(connection: Connection, raw: Any) -> None:
    raw.set(KEYS.job(REF), "text")
    calls: list[Call[object]] = [functions.submit(KEYS, REF, REQUEST), functions.job_info(KEYS, REF)]
    for call in calls:
        with pytest.raises(RecordInvalid):
            connection.run(call)


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    connection = Connection(RedisSettings(f"redis://:secret@127.0.0.1:{port}"))
    for run in (
        lambda: connection.run(functions.job_info(KEYS, REF)),
        lambda: connection.run(functions.cancel(KEYS, REF)),
        lambda: connection.run_many([functions.job_info(KEYS, REF)] * 2),
    ):
        with pytest.raises(ServiceUnavailable) as caught:
            run()
        assert "secret" not in str(caught.value)


async def test_nobody_listens_async() -> None:
    connection = AsyncConnection(RedisSettings("redis://127.0.0.1:1"))
    with pytest.raises(ServiceUnavailable):
        await connection.run(functions.cancel(KEYS, REF))
    await connection.close()


def test_nothing_is_sent_twice() -> None:
    """A server that hangs up after each command sees each command once."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    while data := peer.recv(65536):
                        received.append(data)
                        if b"HGET" in data:
                            break
                        peer.sendall(b"+PONG\r\n" if b"PING" in data else b"+OK\r\n" * data.count(b"CLIENT"))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        connection = Connection(RedisSettings(f"redis://127.0.0.1:{server.getsockname()[1]}"))
        with pytest.raises(ServiceUnavailable):
            connection.run(functions.job_status(KEYS, REF))
        connection.close()
        assert sum(data.count(b"HGET") for data in received) == 1
        server.shutdown(socket.SHUT_RDWR)


def test_refused_logins(any_redis_url: str, raw: Any) -> None:
    host = any_redis_url.removeprefix("redis://")
    with pytest.raises(ConfigError, match="refuses us") as caught:
        Connection(RedisSettings(f"redis://me:secret@{host}")).run(functions.job_info(KEYS, REF))
    assert "secret" not in str(caught.value)
    raw.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+get", "+client")
    try:
        with pytest.raises(ConfigError, match="refuses us"):
            Connection(RedisSettings(f"redis://reader:pw@{host}")).run(functions.job_info(KEYS, REF))
    finally:
        raw.execute_command("ACL", "DELUSER", "reader")


def test_unknown_command_means_an_old_server(connection: Connection) -> None:
    with pytest.raises(ConfigError):
        connection.run(Call(("NOSUCHCOMMAND",), lambda reply: reply))


def test_a_blocking_read_outlasts_the_reply_timeout(
    any_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkstream_client.protocol.connection.REPLY_TIMEOUT_S", 0.1)
    call = functions.read_results(KEYS, {REF: 0}, block_ms=250, count=None)
    patient = Connection(RedisSettings(any_redis_url), blocking=True)
    started_s = time.monotonic()
    assert patient.run(call) == {}
    assert time.monotonic() - started_s >= 0.24
    patient.close()
    with pytest.raises(ServiceUnavailable):
        Connection(RedisSettings(any_redis_url)).run(call)


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that takes every greeting and never answers a read: a network that has gone silent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(4096):
                if b"XREAD" not in data:
                    peer.sendall(b"+OK\r\n" * data.count(b"*"))

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


async def test_a_silent_network_ends_a_blocking_read(
    silent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkstream_client.protocol.connection.BLOCKED_TIMEOUT_S", 0.2)
    call = functions.read_results(KEYS, {REF: 0}, block_ms=50, count=None)
    reader = Connection(RedisSettings(silent_url), blocking=True)
    with pytest.raises(ServiceUnavailable):
        reader.run(call)
    reader.close()
    other = AsyncConnection(RedisSettings(silent_url), blocking=True)
    with pytest.raises(ServiceUnavailable):
        await other.run(call)
    await other.close()


def test_connections_are_kept_alive(connection: Connection, tmp_path: Path) -> None:
    connection.run(server_check())
    private: Any = connection
    found: socket.socket = private._servers._client.connection_pool.get_connection()._sock
    assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    local = Connection(RedisSettings(f"unix://{tmp_path}/none.sock"))  # which has no such option
    with pytest.raises(ServiceUnavailable):
        local.run(server_check())


def test_what_redis_will_never_do_is_not_tried_again(connection: Connection, raw: Any) -> None:
    with pytest.raises(CommandRefused, match="stream ID"):
        connection.run(Call(("XREAD", "STREAMS", "ts:{0}:out:a:j", "-1-0"), lambda reply: reply))
    with pytest.raises(CommandRefused):
        connection.run(Call(("GET",), lambda reply: reply))
    with pytest.raises(CommandRefused):
        connection.run(Call(("GET", [1]), lambda reply: reply))  # type: ignore[arg-type]  # pyright: ignore
    raw.function_load("#!lua name=broken\nredis.register_function('broken', function() return 1 + nil end)")
    try:
        with pytest.raises(CommandRefused, match="nil value"):
            connection.run(Call(("FCALL", "broken", 0), lambda reply: reply))
    finally:
        raw.function_delete("broken")


def test_a_refusal_that_passes_is_not_for_ever(connection: Connection, raw: Any) -> None:
    raw.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(ServiceUnavailable, match="NOREPLICAS"):
            connection.run(Call(("SET", "a", "b"), lambda reply: reply))
    finally:
        raw.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (foreign.ReadOnlyError("You can't write against a read only replica."), ServiceUnavailable),
        (foreign.ResponseError("UNBLOCKED force unblock from blocking operation"), ServiceUnavailable),
        (foreign.ResponseError("BUSY Redis is busy running a script."), ServiceUnavailable),
        (foreign.ResponseError("MISCONF Errors writing to the AOF file"), ServiceUnavailable),
        (foreign.BusyLoadingError("Redis is loading the dataset in memory"), ServiceUnavailable),
        (foreign.MasterDownError("Link with MASTER is down"), ServiceUnavailable),
        (foreign.TryAgainError("Multiple keys request during rehashing of slot"), ServiceUnavailable),
        (foreign.TimeoutError("Timeout reading from socket"), ServiceUnavailable),
        (foreign.ClusterCrossSlotError("Keys in request don't hash to the same slot"), CommandRefused),
        (foreign.ResponseError("syntax error"), CommandRefused),
    ],
)
def test_kinds_of_refusals(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]) -> None:
    def send(calls: object) -> list[Any]:
        raise error

    connection = Connection(RedisSettings("redis://127.0.0.1:1"))
    monkeypatch.setattr(connection._servers, "send", send)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(kind):
        connection.run(Call(("GET", "a"), lambda reply: reply))


def test_threads_share_a_connection(connection: Connection) -> None:
    refs = [JobRef("a", f"j{i}") for i in range(40)]

    def work(mine: list[JobRef]) -> None:
        for ref in mine:
            connection.run(functions.submit(KEYS, ref, REQUEST))

    threads = [threading.Thread(target=work, args=(refs[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = connection.run_many([functions.job_status(KEYS, ref) for ref in refs])
    assert found == [JobStatus.QUEUED] * 40


def test_durable_needs_a_log(connection: Connection) -> None:
    # Valkey says that the log is off, Redis 7.0 does not know the command.
    connection.run(functions.submit(KEYS, REF, REQUEST))
    calls: list[Call[object]] = [functions.confirm(KEYS, REF), functions.durable(timeout_ms=100)]
    confirmed, durable = connection.run_many(calls)
    assert confirmed is None
    assert isinstance(durable, ConfigError)


def test_server_check(connection: Connection, raw: Any) -> None:
    found = connection.run(server_check())
    assert found.name in ("Redis", "Valkey")
    assert int(found.version.split(".")[0]) >= 7
    assert not found.append_only
    raw.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigError, match="maxmemory-policy to noeviction, it is allkeys-lru"):
        connection.run(server_check())


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        (b"redis_version:6.2.14\r\n", False),
        (b"redis_version:7.0.15\r\n", True),
        (b"redis_version:7.2.4\r\nvalkey_version:7.2.0\r\n", True),
        (b"redis_version:8.6.3\r\n", True),
        (b"", False),
    ],
)
def test_versions(text: bytes, accepted: bool) -> None:
    if accepted:
        server_check().parse(text)
        return
    with pytest.raises(ConfigError, match=r"too old: 7\.0 or later"):
        server_check().parse(text)


def test_import_is_light() -> None:
    code = (
        "import sys, thinkstream_client.protocol.functions, thinkstream_client.protocol.connection\n"
        "print([m for m in ('redis', 'asyncio', 'torch', 'ray') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr
