from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from thinkstream_client.cli import app
from thinkstream_client.discovery import ProcessMark, ServiceState, read_state, write_state
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler import background, detached, foreground, processes
from thinkstream_scheduler.cli_options import num_bytes
from thinkstream_scheduler.embedded import EmbeddedServer
from thinkstream_scheduler.state_folder import holder, only_one
from thinkstream_scheduler.up_arguments import UpArguments

UNREACHABLE = "redis://127.0.0.1:1"


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("THINKSTREAM_STATE_DIR", str(folder))
    return folder


class Outcome(NamedTuple):
    code: object
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], state_folder: Path) -> Command:
    """Runs ``thinkstream`` with some arguments and a state folder of its own."""

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            app.run(arguments)
        printed = capfd.readouterr()
        return Outcome(ended.value.code, printed.out, printed.err)

    assert not state_folder.exists()
    return run


@pytest.fixture
def start_sleeper() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts processes that might be parts of a service."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        code = "import time; time.sleep(60)  # thinkstream"
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


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
        (["--redis", UNREACHABLE], 1, r"Redis at redis://127\.0\.0\.1:1: .*refused"),
        (["--redis", "http://x"], 2, r"Redis URL http://x: expected redis://"),
        (["--ray", "127.0.0.1:1"], 1, r"Ray at 127\.0\.0\.1:1 does not answer: Connection refused"),
        (["--ray", "nowhere"], 2, r"ray_address: got 'nowhere', allowed: HOST:PORT or auto"),
        (["--redis", UNREACHABLE, "--namespace", "a b"], 2, r"namespace: got 'a b', allowed: "),
        (["--model", "/nowhere/at/all"], 2, r"/nowhere/at/all.*no such folder"),
        (["--model", "random:/nowhere.json"], 2, r"/nowhere\.json.*no such file"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_code(
    command: Command, arguments: list[str], code: int, message: str
) -> None:
    ended = command("up", *arguments)
    assert ended.code == code
    assert re.search(message, ended.err)
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere/at/all"], r"/nowhere/at/all.*no such folder"),
        (["--device", "gpu"], r"device: got 'gpu', allowed: cpu or cuda"),
        (["--dtype", "int8"], r"dtype: got 'int8', allowed: float32, bfloat16, float16"),
        (
            ["--slots", "64", "--step-tokens", "32"],
            r"step_tokens: got 32, allowed: an integer in \[64, 131072\]",
        ),
        (["--namespace", "a b"], r"namespace: got 'a b', allowed: "),
        (["--device", "cuda:1"], r"device: got 'cuda:1', allowed: cpu or cuda"),
        (["--lease", "nan"], r"'--lease': got 'nan', allowed: a number in \[0\.1, 86400\]"),
        (["--lease", "1e300"], r"'--lease': got '1e300', .*\b86400\b"),
        (["--lease", "100000"], r"'--lease': .*\b86400\b"),
        (["--drain", "1e300"], r"'--drain': .*\b86400\b"),
        (["--slots", "9" * 30], r"'--slots': got '9{30}', allowed: an integer in \[1, 4096\]"),
        (["--step-tokens", "9" * 30], r"'--step-tokens': .*\b131072\b"),
        (["--max-context", "9" * 30], r"'--max-context': .*\b16777216\b"),
        (["--max-context", "16777216"], r"max_context: got 16777216, allowed: up to the model's \d+"),
        (["--kv-memory", "999999TiB"], r"'--kv-memory': got '999999TiB', allowed: at most 16TiB"),
        (["--kv-memory", "9" * 400], r"'--kv-memory': got '9{400}', allowed: at most 16TiB"),
        (["--kv-memory", "8"], r"--kv-memory: got 8 bytes, allowed: at least \d+, .* as in 8GiB"),
        (["--model", "Qwen/Qwen3"], r"no such folder; a hub's name is not fetched: download it first"),
        (["--kv-memory", "8TiB"], r"--kv-memory: got 8TiB, allowed: up to [\d.]+[MGT]iB, "),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(
    command: Command, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: EmbeddedServer, checkpoint: Callable[[], None]) -> None:
        del checkpoint
        raise AssertionError("the server was started")

    monkeypatch.setattr(EmbeddedServer, "start", fail)
    ended = command("up", *arguments)
    assert ended.code == 2
    assert re.search(message, ended.err)
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["up"], ["up", "--detach"], ["demo"]])
def test_without_the_extra_nothing_is_started(
    command: Command, arguments: list[str], state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert (
        ended.err
        == "thinkstream: this command needs the extra `service`: pip install 'thinkstream[service]'\n"
    )
    assert not state_folder.exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64KiB", 65_536), ("1.5 GiB", 3 << 29), ("2g", 2 << 30), ("1TiB", 1 << 40), ("7B", 7)],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert num_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1 PiB", "GiB"])
def test_what_is_no_size_is_one_line(command: Command, text: str) -> None:
    ended = command("up", "--kv-memory", text)
    assert ended.code == 2
    assert f"got {text!r}, allowed: a number and KiB" in ended.err
    assert ended.err.count("\n") == 1


def test_the_options_of_replicas_reach_them(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[UpArguments] = []

    def record(arguments: UpArguments, announce: Callable[[], None]) -> None:
        del announce
        asked.append(arguments)

    monkeypatch.setattr(foreground, "serve", record)
    command("up", "--kv-memory", "2GiB", "--lease", "30", "--step-tokens", "64", "--replicas", "2")
    (arguments,) = asked
    assert (arguments.kv_memory_bytes, arguments.lease_ms, arguments.step_tokens) == (2 << 30, 30_000, 64)
    replica = arguments.service_options(RedisSettings(UNREACHABLE), "f00d").replica
    assert (replica.kv_memory_bytes, replica.lease_ms, replica.step_tokens) == (2 << 30, 30_000, 64)
    assert replica.machine_share == 0.5


def test_an_evicting_server_is_refused(command: Command, redis_url: str) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        ended = command("up", "--redis", redis_url)
    assert ended.code == 2
    assert "noeviction" in ended.err


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [(UNREACHABLE, 1, r"Redis at redis://127\.0\.0\.1:1: .*refused"), ("http://x", 2, "Redis URL http://x")],
)
def test_detached_passes_the_child_s_error_on(
    command: Command, state_folder: Path, url: str, code: int, message: str
) -> None:
    state_folder.mkdir()
    (state_folder / "up.log").write_text("what the service before said")
    ended = command("up", "--detach", "--redis", url)
    assert ended.code == code
    assert re.search(message, ended.err)
    assert ended.err.count("\n") == 1
    assert re.search(message, (state_folder / "up.log").read_text())
    assert (state_folder / "up.log.1").read_text() == "what the service before said"


def test_a_child_that_says_nothing_is_pointed_out(
    command: Command, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    ended = command("up", "--detach")
    assert ended.code == 1
    assert f"ended with code 1; see {state_folder / 'up.log'}" in ended.err


def test_the_child_is_told_nothing_by_arguments(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    popen: Any = subprocess.Popen

    def record(arguments: list[str], **options: Any) -> Any:
        told.append(arguments)
        return popen(arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", record)
    ended = command("up", "--detach", "--redis", "redis://:secret@127.0.0.1:1")
    assert "redis://:***@127.0.0.1:1" in ended.err
    (arguments,) = told
    assert arguments[1:3] == ["-m", detached.__name__]
    assert "secret" not in " ".join(arguments)


@pytest.mark.parametrize("options", [(), ("--detach",)])
def test_a_second_service_on_the_same_state_is_refused(
    command: Command, state_folder: Path, options: tuple[str, ...]
) -> None:
    with only_one():
        (state_folder / "up.log").write_text("the first one's")
        ended = command("up", *options)
    assert ended.code == 1
    assert f"a service runs here already (pid {os.getpid()})" in ended.err
    assert (state_folder / "up.log").read_text() == "the first one's"


def test_the_folder_is_held_while_a_detached_child_starts(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[ProcessMark | None] = []
    encode = detached.encode_arguments

    def look(arguments: UpArguments) -> bytes:
        held.append(holder())
        return encode(arguments)

    monkeypatch.setattr(background, "encode_arguments", look)
    command("up", "--detach", "--redis", UNREACHABLE)
    (mark,) = held
    assert mark is not None
    assert command("down").out == "no service runs here\n"


def test_down_without_a_service_says_so(command: Command) -> None:
    assert command("down") == (0, "no service runs here\n", "")


def test_down_ends_what_is_left_and_nobody_else_s(
    command: Command, start_sleeper: Callable[[], subprocess.Popen[bytes]]
) -> None:
    left, stranger = start_sleeper(), start_sleeper()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    marks = processes.marked({"redis": left.pid, "replica-0": stranger.pid})
    # The id of a part that is gone was given to another process, whatever its command line says.
    marks["replica-0"] = replace(marks["replica-0"], start_time=marks["replica-0"].start_time - 1)
    marks["service"] = ProcessMark(pid=gone.pid, start_time=1)
    write_state(ServiceState(url=UNREACHABLE, processes=marks, boot_id=processes.boot_id()))
    began = time.monotonic()
    assert command("down").out == "the service has ended\n"
    assert left.wait(1.0) != 0
    assert stranger.poll() is None
    assert time.monotonic() - began < 10
    assert read_state() is None


def test_down_ends_nothing_of_another_boot(
    command: Command, start_sleeper: Callable[[], subprocess.Popen[bytes]]
) -> None:
    stranger = start_sleeper()
    marks = processes.marked({"service": stranger.pid})
    write_state(ServiceState(url=UNREACHABLE, processes=marks, boot_id="another"))
    assert command("down").out == "the service has ended\n"
    assert stranger.poll() is None
    assert read_state() is None


def test_down_ends_a_service_that_is_still_starting(command: Command, state_folder: Path) -> None:
    code = (
        "import time; from thinkstream_scheduler.state_folder import only_one\n"
        "with only_one(): print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as starting:
        assert starting.stdout is not None
        starting.stdout.readline()
        assert command("down").out == "the service has ended\n"
        assert starting.wait(1.0) != 0
    assert command("down").out == "no service runs here\n"


@pytest.mark.parametrize("arguments", [["status"], ["down"], ["up"], ["up", "--detach"]])
@pytest.mark.parametrize("text", [b"{", b"\xff\xfe"])
def test_a_broken_state_file_is_named(
    command: Command, state_folder: Path, arguments: list[str], text: bytes
) -> None:
    state_folder.mkdir()
    (state_folder / "service.json").write_bytes(text)
    ended = command(*arguments)
    assert ended.code == 2
    assert "service.json is not a state file of thinkstream; remove it" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["status"], ["down"], ["up"], ["up", "--detach"]])
@pytest.mark.parametrize(("name", "reason"), [("file", "Not a directory"), ("x" * 300, "File name too long")])
def test_a_state_folder_that_is_none_is_named(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    name: str,
    reason: str,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("THINKSTREAM_STATE_DIR", str(tmp_path / name))
    ended = command(*arguments)
    assert ended.code == 2
    assert re.search(rf"^thinkstream: {tmp_path / name}.*: {reason}$", ended.err)
    assert ended.err.count("\n") == 1


def test_detached_passes_on_what_nobody_foresaw(
    command: Command, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_wrongly(arguments: UpArguments) -> bytes:
        del arguments
        return b'{"surplus": 1}'

    monkeypatch.setattr(background, "encode_arguments", encode_wrongly)
    ended = command("up", "--detach")
    assert ended.code == 1
    assert re.search(r"TypeError: .*surplus.*; see .*up\.log$", ended.err)
    assert ended.err.count("\n") == 1
