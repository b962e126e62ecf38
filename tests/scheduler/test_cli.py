from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from thinkstream_client.discovery import ServiceState, read_state, write_state
from thinkstream_scheduler.cli import register

UNREACHABLE = "redis://127.0.0.1:1"


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("THINKSTREAM_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that might be a part of a service, by its command line."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # thinkstream"]) as process:
        yield process
        process.kill()


def run(*arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    register(app)
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("command", ["up", "down", "demo"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: thinkstream {command}" in result.output


def test_help_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys, typer; from thinkstream_scheduler.cli import register; register(typer.Typer())\n"
        "assert not {'ray', 'torch', 'redis'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--redis", UNREACHABLE], 1, r"error: Redis at redis://127\.0\.0\.1:1: .*refused"),
        (["--redis", "http://x"], 2, r"error: Redis URL http://x: expected redis://"),
        (["--redis", UNREACHABLE, "--namespace", "a b"], 2, r"error: namespace: got 'a b', allowed: "),
        (["--model", "/nowhere/at/all"], 2, r"error: .*/nowhere/at/all.*no such folder"),
        (["--model", "random:/nowhere.json"], 2, r"error: .*/nowhere\.json.*no such file"),
    ],
)
@pytest.mark.usefixtures("state_folder")
def test_what_is_wrong_is_one_line_and_a_code(arguments: list[str], code: int, message: str) -> None:
    result = run("up", *arguments)
    assert result.exit_code == code
    assert re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("state_folder")
def test_an_evicting_server_is_refused(redis_url: str) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        result = run("up", "--redis", redis_url)
    assert result.exit_code == 2
    assert "noeviction" in result.stderr


@pytest.mark.usefixtures("state_folder")
def test_detached_passes_the_child_s_error_on() -> None:
    result = run("up", "--detach", "--redis", UNREACHABLE)
    assert result.exit_code == 1
    assert re.search(r"error: Redis at redis://127\.0\.0\.1:1: .*refused", result.stderr)
    assert result.stderr.count("error:") == 1


def test_a_second_service_on_the_same_state_is_refused(state_folder: Path) -> None:
    import fcntl

    state_folder.mkdir()
    with (state_folder / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_state(ServiceState(url=UNREACHABLE, pids={"service": 4242}))
        result = run("up")
    assert result.exit_code == 1
    assert "a service runs here already (pid 4242)" in result.stderr


@pytest.mark.usefixtures("state_folder")
def test_down_without_a_service_says_so() -> None:
    result = run("down")
    assert result.exit_code == 0
    assert result.output == "no service runs here\n"


@pytest.mark.usefixtures("state_folder")
def test_down_ends_what_is_left_and_nobody_else_s(sleeper: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        pids = {"service": gone.pid, "redis": sleeper.pid, "replica-0": stranger.pid}
        write_state(ServiceState(url=UNREACHABLE, pids=pids))
        began = time.monotonic()
        result = run("down")
        assert result.output == "the service has ended\n"
        assert sleeper.wait(1.0) != 0
        assert stranger.poll() is None
        assert time.monotonic() - began < 10
        stranger.kill()
    assert read_state() is None


def test_a_broken_state_file_is_named(state_folder: Path) -> None:
    state_folder.mkdir()
    (state_folder / "service.json").write_text("{")
    result = run("down")
    assert result.exit_code == 2
    assert "service.json is not a state file of thinkstream" in result.stderr
