"""`up --detach` and `down` as a user calls them: jobs outlive the service, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from thinkstream_client.client import Client
from thinkstream_client.discovery import read_state
from thinkstream_client.outcome import JobStatus
from thinkstream_scheduler import processes
from thinkstream_scheduler.state_folder import holder

PROMPT = "Once upon a time"
NUM_TOKENS = 400


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.setenv("THINKSTREAM_STATE_DIR", str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    yield environment
    thinkstream(environment, "down", "--timeout", "1")


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "thinkstream_client.cli", *arguments]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def thinkstream(environment: dict[str, str], *arguments: str) -> str:
    done = run(environment, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_goes_on_after_down_and_up_where_it_was(environment: dict[str, str], tmp_path: Path) -> None:
    assert "serving demo with 1 replica on redis://127.0.0.1:" in thinkstream(
        environment, "up", "--detach", "--drain", "0"
    )
    state = read_state()
    assert state is not None
    assert {"service", "redis", "scheduler"} < state.processes.keys()
    for mark in state.processes.values():
        assert processes.start_time(mark.pid) == mark.start_time
    with Client() as client:
        job = client.submit(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True, seed=7)
        stream = job.stream(timeout_s=30)
        read = [next(stream) for _ in range(5)]

    assert thinkstream(environment, "down") == "the service has ended\n"
    running = [mark for mark in state.processes.values() if processes.start_time(mark.pid) == mark.start_time]
    assert running == []
    assert read_state() is None
    log = (tmp_path / "up.log").read_text()
    assert "Traceback" not in log

    thinkstream(environment, "up", "--detach")
    with Client() as client:
        info = client.job(job.id).info()
        assert info.status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.DONE)
        result = client.job(job.id).result(timeout_s=60)
        info = client.job(job.id).info()
        assert info.claims == 2
        assert info.attempts == 0
        assert result.token_ids[: len(read)] == tuple(token for chunk in read for token in chunk.token_ids)
        again = client.submit(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True, seed=7).result(timeout_s=60)
        assert again.token_ids == result.token_ids
        assert again.text == result.text


def test_down_ends_a_service_that_is_still_starting(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "thinkstream_client.cli", "up", "--detach"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as starting:
        until = time.monotonic() + 30
        while not (tmp_path / "data" / "port").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        mark = holder()
        assert mark is not None
        below = processes.descendants(mark.pid)
        assert thinkstream(environment, "down") == "the service has ended\n"
        assert starting.stderr is not None
        assert "the service was ended before it was ready" in starting.stderr.read()
    assert starting.returncode == 1
    assert [pid for pid, started in below.items() if processes.start_time(pid) == started] == []
    assert (holder(), read_state()) == (None, None)


def test_replicas_that_no_machine_could_hold_are_refused(environment: dict[str, str]) -> None:
    refused = run(environment, "up", "--device", "cuda", "--replicas", "99")
    assert refused.returncode == 2
    assert "99 replicas of 1 GPU want 99 GPU, Ray has " in refused.stderr
    assert read_state() is None
