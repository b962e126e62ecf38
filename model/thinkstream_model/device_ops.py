"""Which operations run on which device: the one place where that is decided."""

from __future__ import annotations

import logging

import torch

from .config import ThinkerConfig
from .ops import Ops
from .torch_ops import TorchOps

logger = logging.getLogger(__name__)


def ops_for(config: ThinkerConfig, device: torch.device, *, fast_small_batch: bool = False) -> Ops:
    """Choose the operations of a device: Triton's kernels on a GPU, plain torch elsewhere.

    Args:
        config: The Thinker's shape.
        device: Where its weights are.
        fast_small_batch: Trade exactness for speed where few rows are decoded at once; only a GPU has
            something to trade.
    """
    if device.type != "cuda":
        return TorchOps(config, device)
    try:
        from .triton_ops import TritonOps
    except ImportError as error:  # no Triton, or one without what the kernels take from it
        logger.warning("%s: the GPU runs plain torch, several times slower and not exact", error)
        return TorchOps(config, device)
    return TritonOps(config, device, fast_small_batch=fast_small_batch)
