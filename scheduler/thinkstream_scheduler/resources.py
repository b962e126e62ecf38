"""What a replica takes of a machine. Knows no Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

_TOLERANCE = 1e-4  # Ray counts in ten-thousandths


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaResources:
    """What Ray sets aside for one replica.

    Attributes:
        num_cpus: CPUs, or a fraction of one where several replicas share a small machine.
        num_gpus: GPUs, or a fraction of one.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0


def shortage(wanted: ReplicaResources, num_replicas: int, room: Mapping[str, float]) -> str | None:
    """Says what a cluster lacks for so many replicas; None where they fit.

    Args:
        wanted: What each replica gets.
        num_replicas: How many are to run.
        room: What the cluster has, by Ray's names for it.
    """
    for name, each in (("GPU", wanted.num_gpus), ("CPU", wanted.num_cpus)):
        total, found = num_replicas * each, room.get(name, 0.0)
        if total > found + _TOLERANCE:
            want = "replica of {} wants" if num_replicas == 1 else "replicas of {} want"
            what = want.format(f"{each:g} {name}")
            return f"{num_replicas} {what} {total:g} {name}, Ray has {found:g}"
    return None


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
