"""What an error of the device means for the steps behind it."""

from __future__ import annotations

import torch

_OF_THE_DEVICE = ("CUDA error", "HIP error", "Triton Error [")
"""How torch's own errors begin that have no class, and those of Triton's launches."""


def is_fatal(error: Exception) -> bool:
    """Whether the device itself has failed, so that no later step on it can be trusted.

    Out of memory is not: a smaller step may do.
    """
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_THE_DEVICE)
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory, be it torch, the driver or a launch of Triton that says so."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error)
    )
