"""Which operations run on which device: the one place where that is decided."""

from __future__ import annotations

import importlib
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
    if not _has_triton():
        logger.warning("no triton that does: the GPU runs plain torch, several times slower and not exact")
        return TorchOps(config, device)
    from .triton_ops import TritonOps

    return TritonOps(config, device, fast_small_batch=fast_small_batch)


def _has_triton() -> bool:
    """Whether Triton is there, with all that the kernels take from it."""
    try:
        return hasattr(importlib.import_module("triton.language.extra.cuda"), "gdc_wait")
    except ImportError:
        return False
