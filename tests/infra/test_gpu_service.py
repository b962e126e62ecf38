"""The bench of a whole service kills its own replicas alone, and says so where nothing went on after it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest
from infra.bench.gpu.service import first_resumed_s, kill_replica
from infra.own_processes import REPLICA

from thinkstream_scheduler import processes

SLEEP = shutil.which("sleep") or ""


@pytest.fixture
def own() -> Iterator[subprocess.Popen[bytes]]:
    """What looks like a replica, below this process."""
    process = subprocess.Popen([f"{REPLICA}.run", "60"], executable=SLEEP)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def another() -> Iterator[int]:
    """What looks like a replica, of somebody else: its parent is gone."""
    command = f"exec -a {REPLICA}.run {SLEEP} 60 >/dev/null 2>&1"
    told = subprocess.run(["bash", "-c", f"({command}) & echo $!"], check=True, capture_output=True)
    pid = int(told.stdout)
    yield pid
    os.kill(pid, signal.SIGKILL)


def test_only_replicas_of_our_own_are_killed(own: subprocess.Popen[bytes], another: int) -> None:
    kill_replica()
    assert own.wait(timeout=10) == -signal.SIGKILL
    assert processes.start_time(another) is not None
    with pytest.raises(RuntimeError, match="no replica"):
        kill_replica()


def test_streams_go_on_behind_what_was_on_its_way() -> None:
    assert first_resumed_s([[1.0, 2.1, 9.0], [1.0, 2.2, 8.5]], 2.0) == 8.5
    with pytest.raises(RuntimeError, match="give them more --tokens"):
        first_resumed_s([[1.0, 1.5], [1.0, 2.5]], 2.0)
