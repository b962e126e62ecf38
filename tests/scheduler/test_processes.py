from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from thinkstream_scheduler import processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    """A child that ignores SIGTERM and has a child of its own."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        processes.end(processes.descendants(process.pid), timeout_s=0.0)
        process.kill()


def test_descendants_are_found_over_generations(stubborn: subprocess.Popen[bytes]) -> None:
    found = processes.descendants(os.getpid())
    below = processes.descendants(stubborn.pid)
    assert stubborn.pid in found
    assert len(below) == 1
    assert below.items() <= found.items()


def test_what_ignores_sigterm_is_killed(stubborn: subprocess.Popen[bytes]) -> None:
    grandchild = processes.descendants(stubborn.pid)
    began = time.monotonic()
    processes.end(grandchild, timeout_s=0.2)
    assert [processes.start_time(pid) for pid in grandchild] == [None]
    assert 0.2 <= time.monotonic() - began < 3.0
    assert stubborn.wait(5.0) == 0


def test_an_id_that_became_another_process_s_is_left_alone(stubborn: subprocess.Popen[bytes]) -> None:
    started = processes.start_time(stubborn.pid)
    assert started is not None
    processes.end({stubborn.pid: started - 1}, timeout_s=0.1)
    assert processes.start_time(stubborn.pid) == started


def test_a_zombie_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    until = time.monotonic() + 10
    while processes.start_time(child.pid) is not None:
        assert time.monotonic() < until
        time.sleep(0.01)
    child.wait()
