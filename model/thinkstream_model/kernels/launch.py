"""How kernels are launched: one behind the other's end, where the device can.

With dependent launch a kernel is set up while the one before it still runs, and waits on the device for
its results. It pays only when each kernel lets the next one start as soon as it has itself waited, and is
safe because each waits before it stores anything: then whatever the last but one wrote is complete.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

_HOPPER = (9, 0)
_H100_PROCESSORS = 132


def is_nvidia(device: torch.device) -> bool:
    """Whether the device is one of NVIDIA's."""
    return device.type == "cuda" and torch.version.hip is None


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether the device is a Hopper, whose matrix instructions later devices do not have."""
    return is_nvidia(device) and torch.cuda.get_device_capability(device) == _HOPPER


@functools.cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of the device, each of which takes a program or a few; an H100's for what has none.

    Nothing that decides a bit may follow from it.
    """
    if device.type != "cuda":
        return _H100_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def is_dependent(device: torch.device) -> bool:
    """Whether kernels on the device wait for each other by themselves: from Hopper on they can.

    ``THINKSTREAM_DEPENDENT_LAUNCH=0`` forbids it: a profiler would count a kernel's wait as its work.
    """
    if os.environ.get("THINKSTREAM_DEPENDENT_LAUNCH") == "0":
        return False
    return is_nvidia(device) and torch.cuda.get_device_capability(device) >= _HOPPER


def launch_options(device: torch.device) -> dict[str, Any]:
    """Options that every launch on the device takes.

    On AMD's they hold the matrix instruction to one kind, so that tiles of any size sum in one order.
    """
    if device.type == "cuda" and torch.version.hip is not None:
        return {"matrix_instr_nonkdim": 16}
    return {"launch_pdl": True} if is_dependent(device) else {}


def dot_precision(dtype: torch.dtype) -> str:
    """How a dot treats its operands: float32 stays float32, for Triton's default would be TF32."""
    return "ieee" if dtype == torch.float32 else "tf32"
