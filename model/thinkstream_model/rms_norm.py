"""Root-mean-square norm in plain torch, of rows and of heads."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(rows_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Scale the last dimension to unit root mean square in float32, then by the weight in its dtype."""
    rows32_D = rows_D.float()
    scale = torch.rsqrt(rows32_D.square().mean(-1, keepdim=True) + eps)
    return (rows32_D * scale).to(rows_D.dtype) * weight_D
