"""Products of many rows on Hopper, where some warps fetch while the others multiply.

The same as those of ``experts`` and of ``dense`` bit for bit, in five sixths of the time. A program stays on
its processor and takes one task after the other; see ``product_warps``. A warp group has 64 rows of a task,
and where a list has none left for it, it rests.

T rows, D depth, O channels, E experts, P pairs of a row and an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.ops import ExpertLists

from .attention_warps import block_barrier
from .launch import is_dependent, is_hopper, launch_options, num_processors
from .product_tasks import CHANNELS, NUM_GROUPS, ROWS
from .product_warps import DEPTH_STEP, NUM_LOADERS, fetch, multiply

_TILE_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
_GROUP_REGISTERS, _LOADER_REGISTERS = 160, 32
"""Of a thread that multiplies and of one that fetches: all that a processor has, and measured."""
_MAX_OFFSET = 2**31
"""Rows of lists are found by int32."""


@gluon.jit(do_not_specialize=("counts", "list_length"))
def _products_kernel(
    rows: gl.tensor,
    weights: gl.tensor,
    counts: gl.tensor,
    pairs: gl.tensor,
    out: gl.tensor,
    list_length: gl.tensor,
    rows_stride: gl.tensor,
    DEPTH: gl.constexpr,
    WIDTH: gl.constexpr,
    GATED: gl.constexpr,
    LISTED: gl.constexpr,
    PAIRS_EACH: gl.constexpr,
    NUM_PARTS: gl.constexpr,
    NUM_EXPERTS: gl.constexpr,
    REGISTERS: gl.constexpr,
    LOADER_REGISTERS: gl.constexpr,
    DEPENDENT: gl.constexpr,
) -> None:
    """Every so many tasks."""
    # A sum of parts needs a second accumulator, so that a tile has one half; else as many steps in flight
    # as fit into the shared memory.
    HALVES: gl.constexpr = 2 if NUM_PARTS == 1 else 1
    NUM_STAGES: gl.constexpr = 3 if NUM_PARTS == 1 else 4
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    row_tiles = gl.allocate_shared_memory(gl.bfloat16, [NUM_STAGES * NUM_GROUPS, ROWS, DEPTH_STEP], layout)
    weight_tiles = gl.allocate_shared_memory(gl.bfloat16, [NUM_STAGES * HALVES, CHANNELS, DEPTH_STEP], layout)
    out_tiles = gl.allocate_shared_memory(gl.bfloat16, [NUM_GROUPS, ROWS, CHANNELS], layout)
    barriers = gl.allocate_shared_memory(gl.int64, [2 * NUM_STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(NUM_STAGES):
        mbarrier.init(barriers.index(stage), count=NUM_LOADERS + 1 if LISTED else 1)
        mbarrier.init(barriers.index(NUM_STAGES + stage), count=NUM_GROUPS)
    fence_async_shared()
    block_barrier()
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    tiles, lists = (row_tiles, weight_tiles, barriers), (counts, pairs, list_length)
    gl.warp_specialize(
        [
            (multiply, (0, tiles, out_tiles, lists, out,
                        DEPTH, WIDTH, GATED, LISTED, NUM_PARTS, NUM_EXPERTS, HALVES, NUM_STAGES)),
            (multiply, (1, tiles, out_tiles, lists, out,
                        DEPTH, WIDTH, GATED, LISTED, NUM_PARTS, NUM_EXPERTS, HALVES, NUM_STAGES)),
            (multiply, (2, tiles, out_tiles, lists, out,
                        DEPTH, WIDTH, GATED, LISTED, NUM_PARTS, NUM_EXPERTS, HALVES, NUM_STAGES)),
            (fetch, (rows, weights, tiles, lists, rows_stride,
                     DEPTH, WIDTH, GATED, LISTED, PAIRS_EACH, NUM_EXPERTS, HALVES, NUM_STAGES)),
        ],
        [4, 4, 4 if LISTED else 1],
        [REGISTERS, REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip


def is_suited(rows: Tensor, weights: Tensor, out: Tensor, num_parts: int) -> bool:
    """Whether the kernel multiplies these: bfloat16 on Hopper, and whole steps of depth, evenly laid.

    What it writes may be float32.
    """
    is_kind = rows.dtype == weights.dtype == torch.bfloat16 and out.dtype in (torch.bfloat16, torch.float32)
    is_shape = rows.shape[1] % (DEPTH_STEP.value * num_parts) == 0 and out.shape[1] % DEPTH_STEP.value == 0
    is_laid = rows.stride(1) == 1 and rows.stride(0) % 16 == 0 and weights.is_contiguous()
    is_laid &= out.is_contiguous() and all(tensor.data_ptr() % 16 == 0 for tensor in (rows, weights, out))
    is_near = rows.shape[0] * rows.stride(0) < _MAX_OFFSET
    return is_kind and is_shape and is_laid and is_near and is_hopper(rows.device)


def multiply_listed(
    rows: Tensor, weights_EOD: Tensor, lists: ExpertLists, out: Tensor, *, pairs_each: int, is_gated: bool
) -> None:
    """Multiply by each expert's weights the rows of its list, for what ``is_suited``.

    Args:
        rows: Those of pair p are found at ``p // pairs_each``.
        weights_EOD: Gated they are gates over ups.
        lists: Which pairs each expert gets.
        out: Where to write, by pair: products, or ``silu(gate) * up``.
        pairs_each: Pairs of a row.
        is_gated: Which of both.
    """
    num_experts, num_channels, depth = weights_EOD.shape
    _launch(rows, rows, weights_EOD.view(num_experts * num_channels, depth), out, lists.counts_E,
            lists.pairs_EL, list_length=lists.pairs_EL.shape[1], pairs_each=pairs_each, is_gated=is_gated,
            num_parts=1, num_experts=num_experts)  # fmt: skip


def multiply_all(rows_TD: Tensor, weight_OD: Tensor, out_TO: Tensor, *, num_parts: int) -> None:
    """Multiply every row by one matrix, for what ``is_suited``.

    Args:
        rows_TD: The rows.
        weight_OD: The matrix.
        out_TO: Where to write.
        num_parts: Parts of the depth, each summed by itself, then added up in order.
    """
    block = [ROWS.value, DEPTH_STEP.value]
    rows = TensorDescriptor(rows_TD, list(rows_TD.shape), [rows_TD.stride(0), 1], block, _TILE_LAYOUT)
    _launch(rows_TD, rows, weight_OD, out_TO, rows_TD.shape[0], None, list_length=0, pairs_each=1,
            is_gated=False, num_parts=num_parts, num_experts=1)  # fmt: skip


def _launch(
    rows: Tensor,
    read_by: Tensor | TensorDescriptor,
    weights: Tensor,
    out: Tensor,
    counts: Tensor | int,
    pairs: Tensor | None,
    *,
    list_length: int,
    pairs_each: int,
    is_gated: bool,
    num_parts: int,
    num_experts: int,
) -> None:
    depth, device = weights.shape[1], rows.device
    block = [CHANNELS.value, DEPTH_STEP.value]
    tiles = TensorDescriptor(weights, list(weights.shape), [depth, 1], block, _TILE_LAYOUT)
    _products_kernel[(num_processors(device),)](
        read_by, tiles, counts, pairs, out, list_length, rows.stride(0),
        DEPTH=depth, WIDTH=out.shape[1], GATED=is_gated, LISTED=pairs is not None, PAIRS_EACH=pairs_each,
        NUM_PARTS=num_parts, NUM_EXPERTS=num_experts,
        REGISTERS=_GROUP_REGISTERS, LOADER_REGISTERS=_LOADER_REGISTERS,
        DEPENDENT=is_dependent(device), num_warps=4, **launch_options(device),
    )  # fmt: skip
