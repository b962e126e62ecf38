"""How much memory this machine can still give. Needs Linux's ``/proc``; elsewhere nothing is known."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Memory that processes here may still take without anybody being pushed out; 0 where nothing tells.

    Args:
        meminfo: What the kernel tells of the machine.
        cgroup: What it tells of the container, which may be allowed less.
    """
    found = (_of_machine(meminfo), _of_container(cgroup))
    return max(0, min((num_bytes for num_bytes in found if num_bytes is not None), default=0))


def total_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Memory that processes here could have if there were no others; None where nothing tells.

    Args:
        meminfo: What the kernel tells of the machine.
        cgroup: What it tells of the container, which may be allowed less.
    """
    kib = _table(meminfo).get("MemTotal:")
    found = (kib << 10 if kib is not None else None, _limit(cgroup))
    return min((num_bytes for num_bytes in found if num_bytes is not None), default=None)


def _of_machine(meminfo: Path) -> int | None:
    kib = _table(meminfo).get("MemAvailable:")
    return kib << 10 if kib is not None else None


def _of_container(cgroup: Path) -> int | None:
    limit, used = _limit(cgroup), _number(cgroup / "memory.current")
    if limit is None or used is None:
        return None
    return limit - used + _table(cgroup / "memory.stat").get("inactive_file", 0)  # cached files give way


def _limit(cgroup: Path) -> int | None:
    return _number(cgroup / "memory.max")  # "max" where there is none


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
