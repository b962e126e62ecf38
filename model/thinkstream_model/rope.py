"""Rotary positions.

Checkpoints of this family rotate by three positions, time, height and width, whose pairs are
interleaved. Text has one position for the three, and then the rotation is the plain one-dimensional
kind, which is what stands here.

P positions, C width of a head, T tokens, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines, of every position or of each token; the second half of a head shares them."""

    cos_PC: Tensor
    sin_PC: Tensor

    def at(self, positions_T: Tensor, dtype: torch.dtype) -> Rotation:
        """Take the rows of these positions, in the activations' dtype and broadcast over heads."""
        cos_TC, sin_TC = (table_PC.index_select(0, positions_T).to(dtype) for table_PC in self)
        return Rotation(cos_TC.unsqueeze(1), sin_TC.unsqueeze(1))


def rotary_table(num_positions: int, head_dim: int, theta: float, device: torch.device) -> Rotation:
    """Tabulate the rotation of all positions, [P, C / 2], float32.

    Angles are float32, as in the reference implementation. A table is looked up rather than computed per
    step, so that a position turns alike whatever stands beside it.
    """
    exponents_C = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    positions_P = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles_PC = torch.outer(positions_P, 1.0 / theta**exponents_C).double()
    return Rotation(angles_PC.cos().float(), angles_PC.sin().float())


def rotate(heads_THC: Tensor, rotation: Rotation) -> Tensor:
    """Turn each head's pairs (i, i + C / 2) by their position's angles."""
    first_THC, second_THC = heads_THC.chunk(2, dim=-1)
    cos_TC, sin_TC = rotation
    return torch.cat(
        (first_THC * cos_TC - second_THC * sin_TC, second_THC * cos_TC + first_THC * sin_TC), dim=-1
    )
