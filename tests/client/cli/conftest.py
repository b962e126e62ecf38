"""Two ways to run a command: here, for what it prints; as a process, for signals and terminals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

import thinkstream_client
from thinkstream_client import Client
from thinkstream_client.cli import app

SOURCES = str(Path(thinkstream_client.__file__).parents[1])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self, code: int) -> str:
        """The one line on stderr, after a look at everything else."""
        assert (self.code, self.out) == (code, "")
        assert self.err.startswith("thinkstream: ") and self.err.count("\n") == 1, self.err
        return self.err


Command = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _surroundings(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKSTREAM_URL", redis_url)
    monkeypatch.setenv("THINKSTREAM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs ``thinkstream`` with some arguments, and text or bytes as stdin."""

    def run(*args: object, stdin: str | bytes = "") -> Outcome:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            app.run([str(arg) for arg in args])
        printed = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, printed.out, printed.err)

    return run


class Process:
    """``thinkstream`` as a process of its own."""

    def __init__(self, *args: object, **options: Any) -> None:
        defaults: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
        defaults["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thinkstream_client.cli", *(str(arg) for arg in args)],
            env={**os.environ, "PYTHONPATH": SOURCES},
            **defaults | options,
        )

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def read(self, num_bytes: int) -> str:
        """Waits for so many bytes of its output."""
        assert self._process.stdout is not None
        found: bytes = self._process.stdout.read(num_bytes)
        return found.decode()

    def read_note(self) -> str:
        """Waits for a line of its stderr."""
        assert self._process.stderr is not None
        found: bytes = self._process.stderr.readline()
        return found.decode()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close_output(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()

    def end(self) -> Outcome:
        """Closes its input and waits for it; the output is what was not read before."""
        stdin: IO[bytes] | None = self._process.stdin
        if stdin is not None:
            stdin.close()
        code = self._process.wait(timeout=30)
        streams = (self._process.stdout, self._process.stderr)
        out, err = ("" if one is None or one.closed else one.read().decode() for one in streams)
        return Outcome(code, out, err)

    def close(self) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts ``thinkstream`` as a process."""
    started: list[Process] = []

    def run(*args: object, **options: Any) -> Process:
        started.append(Process(*args, **options))
        return started[-1]

    yield run
    for process in started:
        process.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Waits until something is true."""

    def wait(is_true: Callable[[], object]) -> None:
        end_s = time.monotonic() + 20
        while not is_true():
            assert time.monotonic() < end_s
            time.sleep(0.01)

    return wait
