"""Inputs for the kernels and the measure of their results."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal(num_rows: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows of random numbers whose dot products are of the order of 1; their shape is the seed."""
    generator = torch.Generator(device).manual_seed(num_rows * 100_003 + width)
    rows = torch.randn(num_rows, width, generator=generator, device=device)
    return (rows / math.sqrt(math.sqrt(width))).to(dtype)


def assert_close(out: Tensor, expected: Tensor) -> None:
    """Hold a result to its reference, as a whole and with no number missing."""
    assert out.shape == expected.shape and out.dtype == expected.dtype
    out64, expected64 = out.double(), expected.double()
    error = float((out64 - expected64).square().sum().sqrt() / expected64.square().sum().sqrt())
    assert error <= (1e-5 if out.dtype == torch.float32 else 5e-3), error
