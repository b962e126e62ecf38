"""Products of a few rows on Hopper, whose weights are on their way before the rows are known.

With dependent launch a kernel starts while the one before it still runs, and must wait for its results; but
weights never change, so each program has the first tiles of its weights fetched, and only then waits and
reads the rows. The device's memory so has work while a row is normed, routed or attended to, which is a third
of the time of a step of one row. The same bits as ``dense`` and ``experts`` give: the weights are the left
operand of the same instruction, and the depth is summed in the same order.

T rows, D depth, O outputs, P parts, R rows of a tile.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention_warps import block_barrier
from .launch import is_dependent, launch_options

ROWS = gl.constexpr(8)
"""Of a tile: the fewest that the tensor cores take on the right."""
CHANNELS = gl.constexpr(64)
"""Of a tile: what the tensor cores take on the left."""
DEPTH = gl.constexpr(128)
"""Of a tile."""
COLUMNS = gl.constexpr(64)
"""Of a page: what one swizzled row of shared memory holds."""
PANELS = gl.constexpr(DEPTH.value // COLUMNS.value)
TILE_BYTES = gl.constexpr(CHANNELS.value * DEPTH.value * 2)

MAX_DEPTH = 4_096
"""Of rows that leave room for the tiles."""
_MAX_STAGES = 8
"""Tiles under way. Measured on an H100: with more, a program still asks for them when its rows are there."""
_NUM_PROCESSORS = 132
"""Of an H100: products of more programs are better off with smaller ones, several on a processor."""
_PAGE_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.jit
def fetch(
    weights: gl.tensor,
    pages: gl.tensor,
    barriers: gl.tensor,
    stage: gl.tensor,
    channel: gl.tensor,
    apart: gl.tensor,
    column: gl.tensor,
    is_wanted: gl.tensor,
    RUNS: gl.constexpr,
) -> None:
    """Have a tile of the weights fetched; its channels lie in RUNS runs, so far ``apart``."""
    mbarrier.expect(barriers.index(stage), TILE_BYTES, pred=is_wanted)
    for panel in gl.static_range(PANELS):
        for run in gl.static_range(RUNS):
            page = pages.index((stage * PANELS + panel) * RUNS + run)
            place = [channel + run * apart, column + panel * COLUMNS]
            tma.async_copy_global_to_shared(weights, place, barriers.index(stage), page, pred=is_wanted)


@gluon.jit
def multiply_tiles(
    weights: gl.tensor,
    pages: gl.tensor,
    barriers: gl.tensor,
    hidden: gl.tensor,
    channel: gl.tensor,
    apart: gl.tensor,
    column: gl.tensor,
    RUNS: gl.constexpr,
    STAGES: gl.constexpr,
    STEPS: gl.constexpr,
) -> gl.tensor:
    """Multiply STEPS tiles of weights, the first STAGES of which are under way, with as many of the rows.

    Returns:
        float32 [CHANNELS, ROWS].
    """
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    total_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    tiles = pages._reinterpret(gl.bfloat16, [STAGES, CHANNELS, DEPTH], layout)
    total = gl.zeros([CHANNELS, ROWS], gl.float32, layout=total_layout)
    for step in range(STEPS):
        stage = step % STAGES
        mbarrier.wait(barriers.index(stage), step // STAGES & 1)
        right = hidden.index(step).permute((1, 0))
        total = warpgroup_mma(tiles.index(stage), right, total, is_async=True)
        total = warpgroup_mma_wait(0, deps=[total])
        if STAGES < STEPS:
            block_barrier()  # all four warps are done with the tile
            next_step = step + STAGES
            fetch(weights, pages, barriers, stage, channel, apart, column + next_step * DEPTH,
                  next_step < STEPS, RUNS)  # fmt: skip
    return total  # pyright: ignore[reportReturnType] # a tensor, as what it was given


@gluon.jit
def copy_rows(
    rows: gl.tensor, column: gl.tensor, hidden: gl.tensor, barrier: gl.tensor, PART: gl.constexpr
) -> None:
    """Bring all rows, from a column on, into shared memory; zeros stand for those that there are not."""
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    mbarrier.expect(barrier, ROWS * PART * 2)
    whole = hidden._reinterpret(gl.bfloat16, [ROWS, PART], layout)
    tma.async_copy_global_to_shared(rows, [0, column], barrier, whole)
    mbarrier.wait(barrier, 0)


@gluon.jit(do_not_specialize=("num_rows",))
def _dense_kernel(
    weights: gl.tensor,
    rows: gl.tensor,
    out: gl.tensor,
    num_rows: gl.tensor,
    out_stride_part: gl.tensor,
    out_stride_row: gl.tensor,
    PART: gl.constexpr,
    STAGES: gl.constexpr,
    DEPENDENT: gl.constexpr,
) -> None:
    """Some outputs of all rows, over one part of the depth."""
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    pages = gl.allocate_shared_memory(gl.bfloat16, [STAGES * PANELS, CHANNELS, COLUMNS], layout)
    hidden = gl.allocate_shared_memory(gl.bfloat16, [PART // DEPTH, ROWS, DEPTH], layout)
    barriers = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES + 1):
        mbarrier.init(barriers.index(stage), count=1)
    channel, column = gl.program_id(0) * CHANNELS, gl.program_id(1) * PART
    for stage in gl.static_range(STAGES):
        fetch(weights, pages, barriers, stage, channel, 0, column + stage * DEPTH, True, 1)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    copy_rows(rows, column, hidden, barriers.index(STAGES), PART)
    total = multiply_tiles(weights, pages, barriers, hidden, channel, 0, column, 1, STAGES, PART // DEPTH)
    row_R = gl.arange(0, ROWS, layout=gl.SliceLayout(0, total.type.layout))
    channels = channel + gl.arange(0, CHANNELS, layout=gl.SliceLayout(1, total.type.layout))
    places = gl.expand_dims(row_R, 0) * out_stride_row + gl.expand_dims(channels, 1)
    part = out + gl.program_id(1) * out_stride_part
    gl.store(part + places, total.to(out.dtype.element_ty), mask=gl.expand_dims(row_R < num_rows, 0))


def is_suited(hidden_TD: Tensor, weight_OD: Tensor, out_PTO: Tensor) -> bool:
    """Whether ``multiply`` does that product, and all its programs run at the same time."""
    (num_outputs, depth), num_parts = weight_OD.shape, out_PTO.shape[0]
    is_shape = depth % num_parts == 0 and is_whole(depth // num_parts) and num_outputs % CHANNELS.value == 0
    is_wave = num_outputs // CHANNELS.value * num_parts <= _NUM_PROCESSORS
    return is_shape and is_wave and are_copied(hidden_TD, weight_OD)


def are_copied(hidden_TD: Tensor, *weights: Tensor) -> bool:
    """Whether the rows and their weights lie as copies want them."""
    is_aligned = hidden_TD.stride(1) == 1 and hidden_TD.stride(0) % 8 == 0 and hidden_TD.data_ptr() % 16 == 0
    return is_aligned and all(weight.is_contiguous() for weight in weights)


def is_whole(depth: int) -> bool:
    """Whether rows of a depth can be copied at once: Gluon wants a power of two."""
    return DEPTH.value <= depth <= MAX_DEPTH and depth & (depth - 1) == 0


def described(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A matrix (or several, one under the other) for copies of so many rows and columns at once."""
    matrix = matrix.reshape(-1, matrix.shape[-1])
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns], _PAGE_LAYOUT)


def multiply(hidden_TD: Tensor, weight_OD: Tensor, out_PTO: Tensor) -> None:
    """Multiply each row by a matrix, part by part of the depth, into ``out_PTO``."""
    num_parts, num_rows, num_outputs = out_PTO.shape
    part, device = hidden_TD.shape[1] // num_parts, hidden_TD.device
    _dense_kernel[(num_outputs // CHANNELS.value, num_parts)](
        described(weight_OD, CHANNELS.value, COLUMNS.value), described(hidden_TD, ROWS.value, part),
        out_PTO, num_rows, out_PTO.stride(0), out_PTO.stride(1), PART=part,
        STAGES=min(_MAX_STAGES, part // DEPTH.value),
        DEPENDENT=is_dependent(device), num_warps=4, **launch_options(device),
    )  # fmt: skip
