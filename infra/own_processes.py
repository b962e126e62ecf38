"""Processes of a service that this process started itself, by what their command lines say.

Whoever else runs a service on the machine keeps his: only descendants of this process are ever looked at.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from thinkstream_scheduler import processes

REPLICA, SCHEDULER, RAYLET = "ray::ReplicaActor", "ray::SchedulerActor", "/raylet --"
"""What the command lines of a service's processes have in them."""


def find_own(name: str, among: Iterable[int] | None = None) -> list[int]:
    """Processes whose command line has ``name`` in it.

    Args:
        name: A part of a command line.
        among: Where to look; None are all descendants of this process.
    """
    found: list[int] = []
    for pid in processes.descendants(os.getpid()) if among is None else among:
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if name in line:
                found.append(pid)
    return sorted(found)
