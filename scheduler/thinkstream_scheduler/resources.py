"""What a replica takes of a machine. Knows no Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaResources:
    """What Ray sets aside for one replica.

    Attributes:
        num_cpus: CPUs, or a fraction of one where several replicas share a small machine.
        num_gpus: GPUs, or a fraction of one.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
