"""Arrays in one piece, so that a step's inputs reach the device in one copy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .step_arrays import Array

_ALIGNMENT_BYTES = 16
_DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}


def send(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """Brings arrays to the device in one copy, which is not waited for."""
    packed = pack(arrays, pinned=device.type == "cuda")
    return unpack(packed.to(device, non_blocking=True), arrays)


def pack(arrays: Mapping[str, Array], *, pinned: bool) -> Tensor:
    """Lays arrays out one behind the other, each aligned, in fresh host memory.

    Args:
        arrays: By name, of int64, int32 or float32; their order is that of the layout.
        pinned: Take pinned memory, from which a copy does not wait. torch keeps it from reuse while a
            copy from it is under way.

    Returns:
        uint8, to be copied to where ``unpack`` finds them again.
    """
    num_bytes = sum(_aligned(array.nbytes) for array in arrays.values())
    packed = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
    on_host = packed.numpy()
    start = 0
    for array in arrays.values():
        on_host[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        start += _aligned(array.nbytes)
    return packed


def unpack(packed: Tensor, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Views of packed arrays.

    Args:
        packed: What ``pack`` gave, wherever it is by now.
        arrays: The packed ones, or others of the same shapes and kinds; their values do not matter.
    """
    views = {dtype: packed.view(dtype) for dtype in _DTYPES.values()}
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, array in arrays.items():
        first = start // array.itemsize
        tensors[name] = views[_DTYPES[array.dtype]][first : first + array.size].view(array.shape)
        start += _aligned(array.nbytes)
    return tensors


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
