"""Which set of operations runs on which device."""

from __future__ import annotations

import importlib
import logging
from typing import cast

import torch

from .config import ThinkerConfig
from .ops import Ops
from .torch_ops import TorchOps

logger = logging.getLogger(__name__)

_MIN_SHARED_BYTES = 160 << 10
"""Of shared memory a block must get on NVIDIA's: the kernels were cut for an A100's 163 KB or more."""


def ops_for(config: ThinkerConfig, device: torch.device) -> Ops:
    """Choose the operations of a device: Triton's kernels on a GPU, plain torch elsewhere.

    Args:
        config: The Thinker's shape.
        device: Where its weights are.
    """
    if device.type != "cuda":
        return TorchOps(config, device)
    if not _has_triton():
        logger.warning("no triton that does: the GPU runs plain torch, several times slower and not exact")
        return TorchOps(config, device)
    if _shared_bytes(device) < _MIN_SHARED_BYTES:
        logger.warning(
            "%d KB of shared memory a block are too few for the kernels, which need %d: "
            "the GPU runs plain torch, several times slower and not exact",
            _shared_bytes(device) >> 10,
            _MIN_SHARED_BYTES >> 10,
        )
        return TorchOps(config, device)
    from .triton_ops import TritonOps

    return TritonOps(config, device)


def _has_triton() -> bool:
    """Whether Triton is there, with all that the kernels take from it."""
    try:
        return hasattr(importlib.import_module("triton.language.extra.cuda"), "gdc_wait")
    except ImportError:
        return False


def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a block can get; where torch does not say, or on AMD's, as much as there must be."""
    if torch.version.hip is not None:
        return _MIN_SHARED_BYTES
    properties = cast("object", torch.cuda.get_device_properties(device))
    return getattr(properties, "shared_memory_per_block_optin", _MIN_SHARED_BYTES)
