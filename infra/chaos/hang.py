"""Makes one thread of another process stand still while its others run on: a decode loop that hangs.

By Linux's ptrace, so that nothing in the product has to know of it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000
_WATCH_S = 0.3


class Hang(threading.Thread):
    """Holds the busiest thread of a process, then lets it go; it is let go too if we die.

    Args:
        pid: The process.
        seconds: How long.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        super().__init__(name=f"hang-{pid}", daemon=True)
        self._pid, self._seconds = pid, seconds
        self._tried, self._let_go = threading.Event(), threading.Event()
        self._holds = False

    def run(self) -> None:
        """Seizes, waits, lets go. All of it in this thread, as ptrace wants it."""
        libc = ctypes.CDLL(None, use_errno=True)
        tid = 0
        try:
            tid = _busiest_thread(self._pid)
            self._holds = libc.ptrace(_SEIZE, tid, None, None) == 0
            if self._holds:
                libc.ptrace(_INTERRUPT, tid, None, None)
                os.waitpid(tid, _WALL)
        except OSError:  # it died meanwhile
            self._holds = False
        self._tried.set()
        if self._holds:
            self._let_go.wait(self._seconds)
            libc.ptrace(_DETACH, tid, None, None)

    def begin(self) -> bool:
        """Starts it; returns whether the thread is held: this machine may forbid it, or the process died."""
        self.start()
        self._tried.wait()
        return self._holds

    def let_go(self) -> None:
        """Ends it before its time and returns when it has ended."""
        self._let_go.set()
        self.join()


def _busiest_thread(pid: int) -> int:
    before = _cpu_times(pid)
    time.sleep(_WATCH_S)
    after = _cpu_times(pid)
    return max(after, key=lambda tid: after[tid] - before.get(tid, 0))


def _cpu_times(pid: int) -> dict[int, int]:
    times: dict[int, int] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text(errors="replace").rpartition(")")[2].split()
        times[int(task.name)] = int(fields[11]) + int(fields[12])
    return times
