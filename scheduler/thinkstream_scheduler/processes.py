"""Processes by id and start time, so that nobody else's is ever ended. Needs Linux's ``/proc``.

Without it there are no processes to be seen: nothing is found, and nothing ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from thinkstream_client.discovery import ProcessMark

_PROC = Path("/proc")
_POLL_S = 0.05
_KILL_TIMEOUT_S = 5.0


class _Stat(NamedTuple):
    parent: int
    start_time: int


def boot_id() -> str:
    """The kernel's name for the present boot; start times of one boot say nothing in another."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def marked(pids: Mapping[str, int]) -> dict[str, ProcessMark]:
    """Named processes as they can be found again; those that do not run are left out."""
    return {
        name: ProcessMark(pid=pid, start_time=started)
        for name, pid in pids.items()
        if (started := start_time(pid)) is not None
    }


def start_time(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None if it does not run (any more)."""
    found = _stat(pid)
    return found.start_time if found is not None else None


def descendants(root: int) -> dict[int, int]:
    """Children of a process, their children and so on, each with its start time."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir(_PROC) if _PROC.is_dir() else ():
        found = _stat(int(name)) if name.isdigit() else None
        if found is not None:
            children.setdefault(found.parent, []).append((int(name), found.start_time))
    result: dict[int, int] = {}
    parents = [root]
    while parents:
        for pid, started in children.get(parents.pop(), ()):
            result[pid] = started
            parents.append(pid)
    return result


def end(processes: Mapping[int, int], *, timeout_s: float) -> None:
    """Asks processes to end, and kills those that run on; returns when none runs.

    Args:
        processes: Ids and start times; an id that was given to another process since is left alone.
        timeout_s: How long they may take before they are killed.
    """
    for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, _KILL_TIMEOUT_S)):
        running = _running(processes)
        for pid in running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        until_s = time.monotonic() + wait_s
        while running and time.monotonic() < until_s:
            time.sleep(_POLL_S)
            running = _running(processes)


def _running(processes: Mapping[int, int]) -> list[int]:
    return [pid for pid, started in processes.items() if start_time(pid) == started]


def _stat(pid: int) -> _Stat | None:
    try:
        # The name in the second field may hold anything, blanks and brackets too.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return _Stat(parent=int(fields[1]), start_time=int(fields[19]))
