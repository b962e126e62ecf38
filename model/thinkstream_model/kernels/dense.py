"""Dense products: every row by one matrix.

Few rows: the weights are the left operand of the tensor cores, whose left side wants 64 rows, so that a
batch of one wastes nothing (1 to 256 rows are bound by reading the weights). Many rows: tiles as large as
registers hold, in an order that keeps both operands in the L2 cache; Hopper has a kernel of its own.

T rows, D depth, O outputs, P parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.ops import Addend, Parts
from thinkstream_model.step_sizes import MAX_ROWS_IN_PARTS, NUM_PARTS

from . import few_rows
from .launch import dot_precision, is_dependent, launch_options
from .many_rows import are_many, try_multiply
from .tiles import Tile, dot_rows, fitted, num_tiles

_MAX_NARROW_ROWS = 256
"""Up to so many rows reading the weights takes longest, as measured on an H100."""
assert _MAX_NARROW_ROWS <= MAX_ROWS_IN_PARTS, "narrow tiles are chosen for parts that lie apart"


@triton.jit(do_not_specialize=("num_left", "num_right"))
def _dense_kernel(
    left: tl.tensor,
    right: tl.tensor,
    out: tl.tensor,
    num_left: tl.tensor,
    num_right: tl.tensor,
    left_stride: tl.tensor,
    right_stride: tl.tensor,
    out_stride_part: tl.tensor,
    out_stride_left: tl.tensor,
    out_stride_right: tl.tensor,
    DEPTH: tl.constexpr,
    PART: tl.constexpr,
    PARTS_EACH: tl.constexpr,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_LEFT: tl.constexpr,
    EVEN_RIGHT: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One tile of ``left @ right.T``, over PARTS_EACH parts of the depth, each summed by itself."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    tile_left, tile_right = _place(num_left, num_right, BLOCK_LEFT, BLOCK_RIGHT, GROUP)
    lefts = tile_left * BLOCK_LEFT + tl.arange(0, BLOCK_LEFT)
    rights = tile_right * BLOCK_RIGHT + tl.arange(0, BLOCK_RIGHT)
    # Behind the last row the first ones are read again, which needs no mask in the loop; and not the last
    # one again and again, so that programs do not all ask for the same few bytes.
    left_rows = left + (lefts % num_left).to(tl.int64) * left_stride
    right_rows = right + (rights % num_right).to(tl.int64) * right_stride
    first = tl.program_id(1) * PARTS_EACH
    if PARTS_EACH == 1:
        depth = DEPTH if PART == DEPTH else tl.minimum(PART, DEPTH - first * PART)
        total = dot_rows(left_rows + first * PART, right_rows + first * PART, depth,
                         BLOCK_LEFT, BLOCK_RIGHT, BLOCK_K, EVEN_K, PRECISION, STAGES)  # fmt: skip
    else:
        total = tl.zeros((BLOCK_LEFT, BLOCK_RIGHT), tl.float32)
        for part in range(first, first + PARTS_EACH):
            # Not known to the compiler: it would make a part of one step an addition to the sum so far.
            depth = tl.minimum(PART, DEPTH - part * PART)
            total += dot_rows(left_rows + part * PART, right_rows + part * PART, depth,
                              BLOCK_LEFT, BLOCK_RIGHT, BLOCK_K, EVEN_K, PRECISION, STAGES)  # fmt: skip
    places = lefts.to(tl.int64)[:, None] * out_stride_left + rights.to(tl.int64)[None, :] * out_stride_right
    inside = tl.full((BLOCK_LEFT, BLOCK_RIGHT), True, tl.int1)
    if not EVEN_LEFT:
        inside &= (lefts < num_left)[:, None]
    if not EVEN_RIGHT:
        inside &= (rights < num_right)[None, :]
    tl.store(out + first.to(tl.int64) * out_stride_part + places, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _place(
    num_left: tl.tensor,
    num_right: tl.tensor,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """Which tile is this program's: GROUP tiles on the left go through all on the right together.

    Programs that run at the same time then share the rows of both operands.
    """
    program = tl.program_id(0)
    tiles_left = tl.cdiv(num_left, BLOCK_LEFT)
    tiles_right = tl.cdiv(num_right, BLOCK_RIGHT)
    first_left = program // (GROUP * tiles_right) * GROUP
    group = tl.minimum(tiles_left - first_left, GROUP)
    within = program % (GROUP * tiles_right)
    return first_left + within % group, within // group


def linear(hidden_TD: Tensor, weight_OD: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """Multiply every row by a matrix.

    Args:
        hidden_TD: The rows.
        weight_OD: The matrix.
        out_dtype: Kind of the result, which is summed in float32; that of the rows where none is given.

    Returns:
        [T, O].
    """
    out_TO = hidden_TD.new_empty(hidden_TD.shape[0], weight_OD.shape[0], dtype=out_dtype)
    _launch(hidden_TD, weight_OD, out_TO.unsqueeze(0), num_parts=1)
    return out_TO


def linear_reference(hidden_TD: Tensor, weight_OD: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """``linear`` in plain torch."""
    return (hidden_TD.float() @ weight_OD.float().t()).to(out_dtype or hidden_TD.dtype)


def linear_in_parts(hidden_TD: Tensor, weight_OD: Tensor) -> Addend:
    """Multiply every row by a matrix that is deep and narrow, for the residual stream.

    The depth is cut in four. Few rows are too few programs for the device, so each part is a program's and
    the sum is left to the norm that follows. Many rows go through the parts one after the other. After
    ``add_rms_norm`` both come to the same bits: float32 sums in the order of the parts, rounded once.

    Returns:
        [T, O], or its parts.
    """
    num_rows, num_outputs = hidden_TD.shape[0], weight_OD.shape[0]
    if num_rows > MAX_ROWS_IN_PARTS:
        out_TO = hidden_TD.new_empty(num_rows, num_outputs)
        _launch(hidden_TD, weight_OD, out_TO.unsqueeze(0), num_parts=NUM_PARTS)
        return out_TO
    values_PTO = hidden_TD.new_empty(NUM_PARTS, num_rows, num_outputs, dtype=torch.float32)
    _launch(hidden_TD, weight_OD, values_PTO, num_parts=NUM_PARTS)
    return Parts(values_PTO.transpose(0, 1))


def linear_in_parts_reference(hidden_TD: Tensor, weight_OD: Tensor) -> Tensor:
    """``linear_in_parts`` in plain torch, summed up."""
    part = _part_depth(hidden_TD.shape[1], NUM_PARTS)
    total_TO = hidden_TD.new_zeros(hidden_TD.shape[0], weight_OD.shape[0], dtype=torch.float32)
    for start in range(0, hidden_TD.shape[1], part):
        columns = slice(start, start + part)
        total_TO += hidden_TD[:, columns].float() @ weight_OD[:, columns].float().t()
    return total_TO.to(hidden_TD.dtype)


def _launch(hidden_TD: Tensor, weight_OD: Tensor, out_PTO: Tensor, *, num_parts: int) -> None:
    """Multiply into ``out_PTO``, which holds all parts, or one that stands for their sum."""
    assert hidden_TD.stride(1) == 1 and weight_OD.stride(1) == 1
    if out_PTO.shape[0] == num_parts and few_rows.try_multiply(hidden_TD, weight_OD, out_PTO):
        return
    (num_rows, depth), num_outputs, device = hidden_TD.shape, weight_OD.shape[0], hidden_TD.device
    parts_each = num_parts // out_PTO.shape[0]
    is_for_many = out_PTO.shape[0] == 1 and are_many(num_rows, num_outputs)
    if is_for_many and try_multiply(hidden_TD, weight_OD, out_PTO[0], num_parts=num_parts):
        return
    is_narrow = num_rows <= _MAX_NARROW_ROWS
    tile = _narrow_tile(num_rows) if is_narrow else _wide_tile(num_rows, num_outputs, is_sum=parts_each > 1)
    tile = fitted(tile, hidden_TD.dtype)
    part = _part_depth(depth, num_parts)
    grid = num_tiles(num_rows, tile.rows) * num_tiles(num_outputs, tile.channels)
    of_rows = (hidden_TD, num_rows, hidden_TD.stride(0), out_PTO.stride(1), tile.rows, False)
    is_even = num_outputs % tile.channels == 0
    of_channels = (weight_OD, num_outputs, weight_OD.stride(0), 1, tile.channels, is_even)
    left, right = (of_channels, of_rows) if is_narrow else (of_rows, of_channels)
    _dense_kernel[(grid, num_parts // parts_each)](
        left[0], right[0], out_PTO, left[1], right[1], left[2], right[2],
        out_PTO.stride(0), left[3], right[3],
        DEPTH=depth, PART=part, PARTS_EACH=parts_each,
        BLOCK_LEFT=left[4], BLOCK_RIGHT=right[4], BLOCK_K=tile.depth, GROUP=1 if is_narrow else 8,
        EVEN_LEFT=left[5], EVEN_RIGHT=right[5], EVEN_K=part % tile.depth == 0 and part * num_parts == depth,
        PRECISION=dot_precision(hidden_TD.dtype), STAGES=tile.num_stages,
        DEPENDENT=is_dependent(device), num_warps=tile.num_warps, **launch_options(device),
    )  # fmt: skip


def _part_depth(depth: int, num_parts: int) -> int:
    """How deep a part is: whole steps of the tensor cores."""
    return depth if num_parts == 1 else num_tiles(depth, 16 * num_parts) * 16


def _narrow_tile(num_rows: int) -> Tile:
    """Tiles bound by the weights' bandwidth: 64 to 98% of it on an H100, the more outputs the better."""
    if num_rows <= 16:
        return Tile(16, 64, 128, num_warps=4, num_stages=5)
    if num_rows <= 32:
        return Tile(32, 64, 128, num_warps=4, num_stages=5)
    if num_rows < 128:
        return Tile(64, 64, 128, num_warps=4, num_stages=4)
    if num_rows <= 128:
        return Tile(128, 64, 128, num_warps=4, num_stages=3)
    if num_rows <= 192:
        return Tile(64, 128, 64, num_warps=8, num_stages=4)
    return Tile(128, 128, 128, num_warps=8, num_stages=3)


def _wide_tile(num_rows: int, num_outputs: int, *, is_sum: bool) -> Tile:
    """The largest tile that still gives all processors of a large GPU work.

    A sum of parts needs its accumulator twice, which the largest tile has no registers for.
    """
    tiles = (Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 4), Tile(64, 128, 64, 4, 4))
    for tile in tiles[is_sum:]:
        if num_tiles(num_rows, tile.rows) * num_tiles(num_outputs, tile.channels) >= 128:
            return tile
    return tiles[-1]
