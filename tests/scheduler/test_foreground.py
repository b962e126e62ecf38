"""What `up` shows at a terminal, and how it ends when its server dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from thinkstream_client.client import Client
from thinkstream_client.discovery import STATE_DIR_VARIABLE, read_state

Start = Callable[..., subprocess.Popen[str]]

SAY = """
import logging, os, sys
from thinkstream_client.discovery import made_state_dir
from thinkstream_scheduler.log_file import logged_apart
made_state_dir()
with logged_apart() as terminal:
    print("to the terminal", file=terminal, flush=True)
    os.write(2, b"of a library\\n")
    logging.getLogger("thinkstream_scheduler.launch").info("of no interest")
    logging.getLogger("thinkstream_scheduler.serve").info("of interest")
    print("(ReplicaActor pid=1) 10:00:00,1 WARNING thinkstream_workers.build: a cut", file=sys.stderr)
    logging.getLogger("x").error("it broke")
print("afterwards")
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts Python, or `thinkstream up`, with a state folder of its own."""
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def serving(process: subprocess.Popen[str]) -> list[str]:
    """The lines of `up` to the one that says that it serves."""
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    while lines[-1] and not lines[-1].startswith("serving"):
        lines.append(process.stdout.readline())
    return lines


def test_a_terminal_shows_what_is_for_a_person_and_the_log_all_else(start: Start, tmp_path: Path) -> None:
    (tmp_path / "up.log").write_text("the former")
    out, err = start("-c", SAY).communicate()
    assert out.splitlines() == [
        "to the terminal",
        "of interest",
        "warning: a cut",
        "error: it broke",
        "afterwards",
    ]
    assert err == ""
    log = (tmp_path / "up.log").read_text()
    for line in ("of a library", "launch: of no interest", "of interest", "build: a cut", "it broke"):
        assert line in log
    assert (tmp_path / "up.log.1").read_text() == "the former"


def test_a_service_at_a_terminal_says_little(start: Start, tmp_path: Path) -> None:
    process = start("-m", "thinkstream_client.cli", "up")
    lines = serving(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert lines[0] == f"starting demo; the log is {tmp_path / 'up.log'}\n"
    assert re.match("serving demo with 1 replica on redis://", lines[-1])
    assert out.splitlines() == ["ending; running jobs may go on for 10 s", "the service has ended"]
    assert (len(lines), err, process.returncode) == (2, "", 0)
    assert "KV cache: " in (tmp_path / "up.log").read_text()


def test_a_service_whose_server_was_killed_ends_at_once(start: Start) -> None:
    process = start("-m", "thinkstream_client.cli", "up")
    serving(process)
    with Client() as client:
        stream = client.submit("Once upon a time", max_tokens=1_000, ignore_eos=True).stream(timeout_s=30)
        next(stream)
        state = read_state()
        assert state is not None
        os.kill(state.processes["redis"].pid, signal.SIGKILL)
        began_s = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - began_s < 8.0
    assert process.returncode == 1
    assert re.fullmatch("thinkstream: the embedded server has ended; its log lies in .*\n", err)
