"""What the warps of ``many_rows_hopper`` do: some fetch, three warp groups of four each multiply.

They share some stages for a step of the depth: the rows of all warp groups, and the weights that they are
multiplied by. A stage has a barrier that says when all of it is there (full), and one that says when all
warp groups are done with it (empty).

Each finds the program's tasks by itself; see ``product_tasks``. Those that fetch are ahead, so that a task is
being fetched while the one before it is written out.

P pairs or rows, R rows of a warp group, X channels of half a tile, K depth of a step.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .attention_warps import block_barrier
from .product_tasks import BLOCK_ROWS, CHANNELS, NUM_GROUPS, ROWS, first_task, task_of

DEPTH_STEP = gl.constexpr(64)
"""What one swizzled row of shared memory holds."""
NUM_LOADERS = gl.constexpr(128)
"""Threads that fetch rows from where a list says."""


@gluon.jit
def _offsets_of(
    list_start: gl.tensor,
    first: gl.tensor,
    end: gl.tensor,
    rows_stride: gl.tensor,
    PAIRS_EACH: gl.constexpr,
) -> gl.tensor:
    """Where a warp group's rows lie, int32; behind the last one it is read again."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row_R = gl.minimum(first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout)), end - 1)
    column_K = gl.arange(0, DEPTH_STEP, layout=gl.SliceLayout(0, layout))
    offset_R = gl.load(list_start + row_R) // PAIRS_EACH * rows_stride
    return gl.expand_dims(offset_R, 1) + gl.expand_dims(column_K, 0)


@gluon.jit
def _fetch_listed(
    rows: gl.tensor,
    row_tiles: gl.tensor,
    first_tile: gl.tensor,
    offsets: gl.tuple,
    k: gl.tensor,
    num_rows: gl.tensor,
    full: gl.tensor,
) -> None:
    """Have a step of the rows copied that lie at the warp groups' offsets; those without rows get none."""
    offsets0, offsets1, offsets2 = offsets
    async_copy.async_copy_global_to_shared(row_tiles.index(first_tile), rows + (offsets0 + k))
    if num_rows > ROWS:
        async_copy.async_copy_global_to_shared(row_tiles.index(first_tile + 1), rows + (offsets1 + k))
    if num_rows > 2 * ROWS:
        async_copy.async_copy_global_to_shared(row_tiles.index(first_tile + 2), rows + (offsets2 + k))
    async_copy.mbarrier_arrive(full, increment_count=False)


@gluon.jit
def fetch(
    rows: gl.tensor,
    weights: gl.tensor,
    tiles: gl.tuple,
    lists: gl.tuple,
    rows_stride: gl.tensor,
    DEPTH: gl.constexpr,
    WIDTH: gl.constexpr,
    GATED: gl.constexpr,
    LISTED: gl.constexpr,
    PAIRS_EACH: gl.constexpr,
    NUM_EXPERTS: gl.constexpr,
    HALVES: gl.constexpr,
    NUM_STAGES: gl.constexpr,
) -> None:
    """Four warps' work, or one's: rows and weights into each stage, once all warp groups have left it."""
    half_rows: gl.constexpr = WIDTH if GATED else CHANNELS
    expert_rows: gl.constexpr = 2 * WIDTH if GATED else WIDTH
    row_bytes: gl.constexpr = 0 if LISTED else BLOCK_ROWS * DEPTH_STEP * 2
    num_bytes: gl.constexpr = HALVES * CHANNELS * DEPTH_STEP * 2 + row_bytes
    row_tiles, weight_tiles, barriers = tiles
    counts, pairs, list_length = lists
    step, turn = 0, 0
    expert, before, first, end, channel = first_task(counts, WIDTH, GATED, LISTED, NUM_EXPERTS, HALVES)
    while expert < NUM_EXPERTS:
        weight_row = expert * expert_rows + channel
        if LISTED:
            list_start = pairs + expert.to(gl.int64) * list_length
            offsets = (_offsets_of(list_start, first, end, rows_stride, PAIRS_EACH),
                       _offsets_of(list_start, first + ROWS, end, rows_stride, PAIRS_EACH),
                       _offsets_of(list_start, first + 2 * ROWS, end, rows_stride, PAIRS_EACH))  # fmt: skip
        for k in range(0, DEPTH, DEPTH_STEP):
            stage = step % NUM_STAGES
            full = barriers.index(stage)
            mbarrier.wait(barriers.index(NUM_STAGES + stage), (step // NUM_STAGES & 1) ^ 1)
            mbarrier.expect(full, num_bytes)
            for half in gl.static_range(HALVES):
                tile, row = weight_tiles.index(stage * HALVES + half), weight_row + half * half_rows
                tma.async_copy_global_to_shared(weights, [row, k], full, tile)
            if LISTED:
                num_rows, first_tile = end - first, stage * NUM_GROUPS
                _fetch_listed(rows, row_tiles, first_tile, offsets, k, num_rows, full)  # pyright: ignore[reportPossiblyUnboundVariable]
            else:
                for warp_group in gl.static_range(NUM_GROUPS):
                    tile, row = row_tiles.index(stage * NUM_GROUPS + warp_group), first + warp_group * ROWS
                    tma.async_copy_global_to_shared(rows, [row, k], full, tile)
            step += 1
        turn += 1
        expert, before, first, end, channel = task_of(
            turn, expert, before, counts, WIDTH, GATED, LISTED, NUM_EXPERTS, HALVES
        )


@gluon.jit
def _leave(step: gl.tensor, barriers: gl.tensor, pred: gl.tensor, NUM_STAGES: gl.constexpr) -> None:
    """Say that the warp group is done with a step's stage."""
    block_barrier()
    mbarrier.arrive(barriers.index(NUM_STAGES + step % NUM_STAGES), count=1, pred=pred)


@gluon.jit
def _dot(
    warp_group: gl.constexpr,
    step: gl.tensor,
    tiles: gl.tuple,
    DEPTH: gl.constexpr,
    LISTED: gl.constexpr,
    HALVES: gl.constexpr,
    NUM_STAGES: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor]:
    """A warp group's rows by the halves of a tile, summed over the depth in order; of one, two_RX is 0."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHANNELS, 16])
    row_tiles, weight_tiles, barriers = tiles
    one_RX = gl.full([ROWS, CHANNELS], 0.0, gl.float32, layout=layout)
    two_RX = gl.full([ROWS, CHANNELS], 0.0, gl.float32, layout=layout)
    for k in range(0, DEPTH, DEPTH_STEP):
        stage = step % NUM_STAGES
        mbarrier.wait(barriers.index(stage), step // NUM_STAGES & 1)
        if LISTED:
            fence_async_shared()  # what threads have copied, the tensor cores read another way
        rows_RK = row_tiles.index(stage * NUM_GROUPS + warp_group)
        one_KX = weight_tiles.index(stage * HALVES).permute((1, 0))
        one_RX = warpgroup_mma(rows_RK, one_KX, one_RX, use_acc=k > 0, is_async=True)
        if HALVES == 2:
            two_KX = weight_tiles.index(stage * HALVES + 1).permute((1, 0))
            two_RX = warpgroup_mma(rows_RK, two_KX, two_RX, use_acc=k > 0, is_async=True)
        one_RX, two_RX = warpgroup_mma_wait(HALVES, deps=[one_RX, two_RX])  # the step before is done
        _leave(step + NUM_STAGES - 1, barriers, k > 0, NUM_STAGES)
        step += 1
    one_RX, two_RX = warpgroup_mma_wait(0, deps=[one_RX, two_RX])
    _leave(step + NUM_STAGES - 1, barriers, True, NUM_STAGES)
    return one_RX, two_RX  # pyright: ignore[reportReturnType]


@gluon.jit
def _dot_in_parts(
    warp_group: gl.constexpr,
    step: gl.tensor,
    tiles: gl.tuple,
    DEPTH: gl.constexpr,
    LISTED: gl.constexpr,
    NUM_PARTS: gl.constexpr,
    HALVES: gl.constexpr,
    NUM_STAGES: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor]:
    """``_dot`` of parts of the depth, added up in order."""
    part_depth: gl.constexpr = DEPTH // NUM_PARTS
    one_RX, two_RX = _dot(warp_group, step, tiles, part_depth, LISTED, HALVES, NUM_STAGES)
    for part in range(1, NUM_PARTS):
        part_step = step + part * (part_depth // DEPTH_STEP)
        part_RX, _ = _dot(warp_group, part_step, tiles, part_depth, LISTED, HALVES, NUM_STAGES)
        one_RX += part_RX
    return one_RX, two_RX


@gluon.jit
def _rest(step: gl.tensor, barriers: gl.tensor, DEPTH: gl.constexpr, NUM_STAGES: gl.constexpr) -> None:
    """Let a task pass that has no rows for the warp group."""
    for _ in range(0, DEPTH, DEPTH_STEP):
        mbarrier.wait(barriers.index(step % NUM_STAGES), step // NUM_STAGES & 1)
        _leave(step, barriers, True, NUM_STAGES)
        step += 1


@gluon.jit
def _write(
    values_RX: gl.tensor,
    out_tile: gl.tensor,
    out_R: gl.tensor,
    is_row_R: gl.tensor,
    first_channel: gl.tensor,
    WIDTH: gl.constexpr,
    layout: gl.constexpr,
) -> None:
    """Write rows out, by way of shared memory where they are rounded, which brings a row's channels together.

    float32 is wide enough as it lies, and would not fit.
    """
    IS_ROUNDED: gl.constexpr = out_R.dtype.element_ty == gl.bfloat16
    out_layout: gl.constexpr = layout if IS_ROUNDED else values_RX.type.layout
    channel_X = first_channel + gl.arange(0, CHANNELS, layout=gl.SliceLayout(0, out_layout))
    if IS_ROUNDED:
        out_tile.store(values_RX.to(gl.bfloat16))
        block_barrier()
        values_RX = out_tile.load(layout)
    else:
        out_R = gl.convert_layout(out_R, gl.SliceLayout(1, out_layout))
        is_row_R = gl.convert_layout(is_row_R, gl.SliceLayout(1, out_layout))
    inside_RX = gl.expand_dims(is_row_R, 1) & gl.expand_dims(channel_X < WIDTH, 0)
    gl.store(gl.expand_dims(out_R, 1) + gl.expand_dims(channel_X, 0), values_RX, mask=inside_RX)
    block_barrier()


@gluon.jit
def multiply(
    warp_group: gl.constexpr,
    tiles: gl.tuple,
    out_tiles: gl.tensor,
    lists: gl.tuple,
    out: gl.tensor,
    DEPTH: gl.constexpr,
    WIDTH: gl.constexpr,
    GATED: gl.constexpr,
    LISTED: gl.constexpr,
    NUM_PARTS: gl.constexpr,
    NUM_EXPERTS: gl.constexpr,
    HALVES: gl.constexpr,
    NUM_STAGES: gl.constexpr,
) -> None:
    """A warp group's work: its rows of every task, and out with them."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    counts, pairs, list_length = lists
    out_tile = out_tiles.index(warp_group)
    step, turn = 0, 0
    expert, before, first, end, channel = first_task(counts, WIDTH, GATED, LISTED, NUM_EXPERTS, HALVES)
    while expert < NUM_EXPERTS:
        first += warp_group * ROWS
        if first < end:
            one_RX, two_RX = _dot_in_parts(
                warp_group, step, tiles, DEPTH, LISTED, NUM_PARTS, HALVES, NUM_STAGES
            )  # fmt: skip
            row_R = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
            pair_R = row_R
            if LISTED:
                list_start = pairs + expert.to(gl.int64) * list_length
                pair_R = gl.load(list_start + gl.minimum(row_R, end - 1))
            out_R, is_row_R = out + pair_R.to(gl.int64) * WIDTH, row_R < end
            if GATED:
                one_RX = one_RX / (1.0 + gl.exp(-one_RX)) * two_RX
            _write(one_RX, out_tile, out_R, is_row_R, channel, WIDTH, layout)
            if HALVES == 2 and not GATED:
                _write(two_RX, out_tile, out_R, is_row_R, channel + CHANNELS, WIDTH, layout)
        else:
            _rest(step, tiles[2], DEPTH, NUM_STAGES)
        step += DEPTH // DEPTH_STEP
        turn += 1
        expert, before, first, end, channel = task_of(
            turn, expert, before, counts, WIDTH, GATED, LISTED, NUM_EXPERTS, HALVES
        )
