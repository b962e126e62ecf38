"""What the warps of ``attention_prefill_hopper`` do: one fetches, two warp groups of four each multiply.

They share three stages for a tile's keys and three for its values. A stage has a barrier that says when
its tile is there (full), and one that says when both warp groups are done with it (empty).

R rows of a warp group, C width of a head, K keys of a tile, X equal columns.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .attention_softmax import (
    ROWS,
    SCORE_LAYOUT,
    finite,
    mean,
    merge,
    new_result_and_split,
    scaled,
    weights,
)
from .running_softmax import SPLIT_KEYS, TILE_KEYS

block_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""As Triton 3.7 calls it, or 3.6: all threads of a warp group wait for each other."""

NUM_GROUPS = gl.constexpr(2)
SPLIT_TILES = gl.constexpr(SPLIT_KEYS.value // TILE_KEYS.value)
NUM_STAGES = gl.constexpr(3)
"""For a tile's keys, and for its values: as many as fit into the shared memory beside the queries."""
COLUMNS = gl.constexpr(64)
"""Of a page: what one swizzled row of shared memory holds."""
PAGE_LAYOUT = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
"""Of pages, and of the tiles that they make up, as copies and the tensor cores want them."""

KEYS_FULL = gl.constexpr(0)
KEYS_EMPTY = gl.constexpr(NUM_STAGES.value)
VALUES_FULL = gl.constexpr(2 * NUM_STAGES.value)
VALUES_EMPTY = gl.constexpr(3 * NUM_STAGES.value)
"""The first of the stages' barriers of each kind."""


@gluon.jit
def _fetch_tile(
    cache: gl.tensor,
    pages: gl.tensor,
    full: gl.tensor,
    stage: gl.tensor,
    table: gl.tensor,
    first_page: gl.tensor,
    num_pages: gl.tensor,
    no_row: gl.tensor,
    column: gl.tensor,
    WIDTH: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
) -> None:
    """Have a tile of keys or of values fetched, block by block; blocks behind the last one come as zeros."""
    PAGES: gl.constexpr = TILE_KEYS // BLOCK_SIZE
    mbarrier.expect(full, TILE_KEYS * WIDTH * 2)
    for page in gl.static_range(PAGES):
        is_page = first_page + page < num_pages
        row = gl.load(table + first_page + page, mask=is_page, other=0) * BLOCK_SIZE
        row = gl.where(is_page, row, no_row)
        for part in gl.static_range(WIDTH // COLUMNS):
            index = (stage * (WIDTH // COLUMNS) + part) * PAGES + page
            tma.async_copy_global_to_shared(cache, [row, column + part * COLUMNS], full, pages.index(index))


@gluon.jit
def fetch(
    keys: gl.tensor,
    values: gl.tensor,
    key_pages: gl.tensor,
    value_pages: gl.tensor,
    barriers: gl.tensor,
    end_tile: gl.tensor,
    table: gl.tensor,
    num_pages: gl.tensor,
    no_row: gl.tensor,
    column: gl.tensor,
    WIDTH: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
) -> None:
    """One warp's work: each tile into its stage, as soon as both warp groups have left it."""
    for tile in range(end_tile):
        stage, phase = tile % NUM_STAGES, (tile // NUM_STAGES & 1) ^ 1
        first_page = tile * (TILE_KEYS // BLOCK_SIZE)
        mbarrier.wait(barriers.index(KEYS_EMPTY + stage), phase)
        _fetch_tile(keys, key_pages, barriers.index(KEYS_FULL + stage), stage,
                    table, first_page, num_pages, no_row, column, WIDTH, BLOCK_SIZE)  # fmt: skip
        mbarrier.wait(barriers.index(VALUES_EMPTY + stage), phase)
        _fetch_tile(values, value_pages, barriers.index(VALUES_FULL + stage), stage,
                    table, first_page, num_pages, no_row, column, WIDTH, BLOCK_SIZE)  # fmt: skip


@gluon.jit
def _wait_for(barriers: gl.tensor, FIRST_FULL: gl.constexpr, tile: gl.tensor) -> gl.tensor:
    """Wait until a tile's keys, or its values, are there; returns their stage."""
    stage = tile % NUM_STAGES
    mbarrier.wait(barriers.index(FIRST_FULL + stage), tile // NUM_STAGES & 1)
    return stage


@gluon.jit
def _begin_scores(q_RC: gl.tensor, key_tiles: gl.tensor, barriers: gl.tensor, tile: gl.tensor) -> gl.tensor:
    """Have a tile's scores worked out, as soon as its keys are there."""
    no_scores_RK = gl.full([ROWS, TILE_KEYS], 0.0, gl.float32, layout=SCORE_LAYOUT)
    keys_CK = key_tiles.index(_wait_for(barriers, KEYS_FULL, tile)).permute((1, 0))
    scores_RK: gl.tensor = warpgroup_mma(q_RC, keys_CK, no_scores_RK, use_acc=False, is_async=True)
    return scores_RK


@gluon.jit
def _end_scores(scores_RK: gl.tensor, barriers: gl.tensor, tile: gl.tensor) -> gl.tensor:
    """Wait for a tile's scores, and leave the stages of its keys and of the values before them."""
    scores_RK = warpgroup_mma_wait(0, deps=[scores_RK])
    block_barrier()
    mbarrier.arrive(barriers.index(KEYS_EMPTY + tile % NUM_STAGES), count=1)
    mbarrier.arrive(
        barriers.index(VALUES_EMPTY + (tile + NUM_STAGES - 1) % NUM_STAGES), count=1, pred=tile > 0
    )
    return scores_RK


@gluon.jit
def _add_values(
    weights_RK: gl.tensor,
    value_tile: gl.tensor,
    ones_KX: gl.tensor,
    sum_RX: gl.tensor,
    out_RC: gl.tensor,
    USE_ACC: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor]:
    """Add a tile's weights and weighted values; without ``USE_ACC`` nothing stood there."""
    for_sum = gl.convert_layout(weights_RK, gl.DotOperandLayout(0, sum_RX.type.layout, 2))
    for_out = gl.convert_layout(weights_RK, gl.DotOperandLayout(0, out_RC.type.layout, 2))
    sum_RX = warpgroup_mma(for_sum, ones_KX, sum_RX, use_acc=USE_ACC, is_async=True)
    out_RC = warpgroup_mma(for_out, value_tile, out_RC, use_acc=USE_ACC, is_async=True)
    sum_RX, out_RC = warpgroup_mma_wait(0, deps=[sum_RX, out_RC])
    return sum_RX, out_RC


@gluon.jit
def _clear_behind(
    value_pages: gl.tensor,
    stage: gl.tensor,
    num_keys: gl.tensor,
    WIDTH: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
) -> None:
    """Zero what stands behind a tile's last key in its block: it may be anything, and zero times it too."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    PAGES: gl.constexpr = TILE_KEYS // BLOCK_SIZE
    row = gl.arange(0, BLOCK_SIZE, layout=gl.SliceLayout(1, layout))
    is_value = gl.expand_dims(row < num_keys % BLOCK_SIZE, 1)
    for part in gl.static_range(WIDTH // COLUMNS):
        page = value_pages.index((stage * (WIDTH // COLUMNS) + part) * PAGES + num_keys // BLOCK_SIZE)
        value = page.load(layout)
        page.store(gl.where(is_value, value, gl.full_like(value, 0.0)))
    fence_async_shared()
    block_barrier()


@gluon.jit
def _add_whole_tile(
    result: gl.tuple,
    split: gl.tuple,
    tile: gl.tensor,
    q_RC: gl.tensor,
    tiles: gl.tuple,
    ones_KX: gl.tensor,
    barriers: gl.tensor,
    scale: gl.tensor,
    IS_FIRST: gl.constexpr,
) -> tuple[gl.tuple, gl.tuple]:
    """Add a tile that every row sees whole; a split's first begins anew, and the split before is merged."""
    key_tiles, value_tiles = tiles
    scores_RK = _begin_scores(q_RC, key_tiles, barriers, tile)
    if IS_FIRST:  # while the scores are worked out
        result = merge(result, split)
    scores_RK = _end_scores(scores_RK, barriers, tile)
    top_R, sum_RX, out_RC = split
    new_top_R = gl.max(scores_RK, 1) * scale
    if not IS_FIRST:
        new_top_R = gl.maximum(top_R, new_top_R)
        sum_RX, out_RC = scaled(sum_RX, out_RC, gl.exp2(top_R - new_top_R))
    weights_RK = weights(scores_RK, new_top_R, scale)
    stage = _wait_for(barriers, VALUES_FULL, tile)
    sum_RX, out_RC = _add_values(weights_RK, value_tiles.index(stage), ones_KX, sum_RX, out_RC, not IS_FIRST)
    return result, (new_top_R, sum_RX, out_RC)


@gluon.jit
def _add_last_tile(
    result: gl.tuple,
    split: gl.tuple,
    tile: gl.tensor,
    q_RC: gl.tensor,
    tiles: gl.tuple,
    value_pages: gl.tensor,
    ones_KX: gl.tensor,
    barriers: gl.tensor,
    position_R: gl.tensor,
    context_len: gl.tensor,
    scale: gl.tensor,
    WIDTH: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
) -> tuple[gl.tuple, gl.tuple]:
    """Add one of the tiles behind the whole splits: each row sees the keys up to its own position."""
    key_tiles, value_tiles = tiles
    scores_RK = _end_scores(_begin_scores(q_RC, key_tiles, barriers, tile), barriers, tile)
    top_R, sum_RX, out_RC = split
    if tile % SPLIT_TILES == 0:
        result = merge(result, split)
        top_R = gl.full_like(top_R, float("-inf"))
    key_K = tile * TILE_KEYS + gl.arange(0, TILE_KEYS, layout=gl.SliceLayout(0, SCORE_LAYOUT))
    is_seen_RK = gl.expand_dims(key_K, 0) <= gl.expand_dims(position_R, 1)
    scores_RK = gl.where(is_seen_RK, scores_RK, float("-inf"))
    new_top_R = gl.maximum(top_R, gl.max(scores_RK, 1) * scale)
    shift_R = finite(new_top_R)
    weights_RK = weights(scores_RK, shift_R, scale)
    sum_RX, out_RC = scaled(sum_RX, out_RC, gl.exp2(top_R - shift_R))
    stage = _wait_for(barriers, VALUES_FULL, tile)
    num_keys = context_len - tile * TILE_KEYS
    if (num_keys < TILE_KEYS) & (num_keys % BLOCK_SIZE != 0):
        _clear_behind(value_pages, stage, num_keys, WIDTH, BLOCK_SIZE)
    sum_RX, out_RC = _add_values(weights_RK, value_tiles.index(stage), ones_KX, sum_RX, out_RC, True)
    return result, (new_top_R, sum_RX, out_RC)


@gluon.jit
def attend(
    warp_group: gl.constexpr,
    q_groups: gl.tensor,
    key_pages: gl.tensor,
    value_pages: gl.tensor,
    ones_KX: gl.tensor,
    barriers: gl.tensor,
    out: gl.tensor,
    whole_tiles: gl.tensor,
    end_tile: gl.tensor,
    start: gl.tensor,
    first: gl.tensor,
    query_len: gl.tensor,
    context_len: gl.tensor,
    head: gl.tensor,
    scale: gl.tensor,
    KV_HEADS: gl.constexpr,
    HEADS_EACH: gl.constexpr,
    HEAD_ROWS: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
) -> None:
    """A warp group's work: its rows of queries through all tiles."""
    row_layout: gl.constexpr = gl.SliceLayout(1, SCORE_LAYOUT)
    q_RC = q_groups.index(warp_group)
    key_tiles = key_pages._reinterpret(gl.bfloat16, [NUM_STAGES, TILE_KEYS, WIDTH], PAGE_LAYOUT)
    value_tiles = value_pages._reinterpret(gl.bfloat16, [NUM_STAGES, TILE_KEYS, WIDTH], PAGE_LAYOUT)
    tiles = (key_tiles, value_tiles)
    row_R = gl.arange(0, ROWS, layout=row_layout)
    token_R, member_R = first + warp_group * (ROWS // HEAD_ROWS) + row_R // HEAD_ROWS, row_R % HEAD_ROWS
    result, split = new_result_and_split(WIDTH)
    whole_splits = whole_tiles // SPLIT_TILES
    for whole_split in range(whole_splits):
        for part in gl.static_range(SPLIT_TILES):
            tile = whole_split * SPLIT_TILES + part
            result, split = _add_whole_tile(
                result, split, tile, q_RC, tiles, ones_KX, barriers, scale, part == 0
            )
    position_R = context_len - query_len + token_R
    for tile in range(whole_splits * SPLIT_TILES, end_tile):  # less than two splits
        result, split = _add_last_tile(
            result, split, tile, q_RC, tiles, value_pages, ones_KX, barriers, position_R, context_len, scale,
            WIDTH, BLOCK_SIZE,
        )  # fmt: skip
    mean_RC = mean(merge(result, split))
    is_row_R = (token_R < query_len) & (member_R < HEADS_EACH)
    q_head_R = (start + token_R).to(gl.int64) * (KV_HEADS * HEADS_EACH) + head * HEADS_EACH + member_R
    column_C = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, mean_RC.type.layout))
    offset_RC = gl.expand_dims(q_head_R * WIDTH, 1) + gl.expand_dims(column_C, 0)
    gl.store(out + offset_RC, mean_RC.to(gl.bfloat16), mask=gl.expand_dims(is_row_R, 1))
