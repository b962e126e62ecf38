"""The piece of a matrix product that one program takes, and the product of such a piece.

Rows are tokens (or pairs of token and expert), channels are rows of the weights, depth is what both are
summed over. How a product is cut into tiles is free: tensor cores add up a row's depth in steps of 16, one
after the other, whatever lies beside it, so all cuts give the same bits. Only the depth must not be cut
otherwise for one batch than for another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Tile(NamedTuple):
    """A piece of a product and the means to work on it."""

    rows: int
    channels: int
    depth: int
    num_warps: int
    num_stages: int


def num_tiles(size: int, tile_size: int) -> int:
    """How many tiles it takes to cover a size."""
    return -(-size // tile_size)


def power_of_2(size: int) -> int:
    """The lowest power of two that is not below a size."""
    return 1 << (size - 1).bit_length()


def fitted(tile: Tile, dtype: torch.dtype) -> Tile:
    """Cut a tile measured on a Hopper GPU in bfloat16 down to what else there is.

    float32 goes without tensor cores and keeps its operands in registers; AMD's GPUs have 64 KB of shared
    memory, and their compiler is at its best with two stages.
    """
    if dtype == torch.float32:
        return Tile(min(tile.rows, 32), min(tile.channels, 64), depth=32, num_warps=4, num_stages=2)
    if torch.version.hip is not None:
        return tile._replace(depth=min(tile.depth, 64), num_stages=2)
    return tile


@triton.jit
def dot_rows(
    left_rows: tl.tensor,
    right_rows: tl.tensor,
    depth: tl.tensor,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """Multiply rows with rows: float32 [BLOCK_LEFT, BLOCK_RIGHT], summed over the depth in order.

    Args:
        left_rows: Where the rows of the left operand start, [BLOCK_LEFT].
        right_rows: Where the rows of the right operand start, [BLOCK_RIGHT].
        depth: How many numbers of a row to sum over; with none, the sum is 0.
        BLOCK_LEFT: Rows on the left; for Hopper's tensor cores a multiple of 64.
        BLOCK_RIGHT: Rows on the right, 16 at least.
        BLOCK_K: Depth of a step of the loop.
        EVEN_K: Whether the depth is a multiple of it.
        PRECISION: How float32 is multiplied.
        STAGES: Steps in flight.
    """
    ks = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_LEFT, BLOCK_RIGHT), tl.float32)
    for k in tl.range(0, depth, BLOCK_K, num_stages=STAGES):
        columns = (k + ks)[None, :]
        if EVEN_K:
            left = tl.load(left_rows[:, None] + columns)
            right = tl.load(right_rows[:, None] + columns)
        else:
            inside = columns < depth
            left = tl.load(left_rows[:, None] + columns, mask=inside, other=0.0)
            right = tl.load(right_rows[:, None] + columns, mask=inside, other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    return total
