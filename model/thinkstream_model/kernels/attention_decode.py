"""Attention of one token per sequence over the paged cache.

A program takes the query heads of one key head for one split of the keys, or for several in turn where rows
and splits are very many; what becomes of a row's several splits is told in ``splits.py``.

B sequences, H query heads, J key heads, G query heads per key head, C width of a head, Q = H * C,
N blocks, S tokens of a block, M blocks of the longest block table, R rows of a program, K keys of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention_prefill import prefill_attention_reference
from .launch import dot_precision, is_dependent, launch_options, num_processors
from .running_softmax import (
    SPLIT_KEYS,
    TILE_KEYS,
    add_tile,
    cache_rows,
    new_split,
    score_scale,
    summed,
    tile_scores,
)
from .splits import Partials, settle
from .tiles import power_of_2

_ROWS = 16  # the fewest that a dot takes
_MAX_PROGRAMS = 16_384
"""Beyond, the splits of a row are shared by fewer programs than there are: one very long row among many short
ones would cost the short ones a program for each of its splits. Measured on an H100."""


@triton.jit(
    do_not_specialize=("table_stride", "max_splits"),
    do_not_specialize_on_alignment=("block_tables", "context_lens", "partial_top", "partial_sum"),
)
def _decode_kernel(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block_tables: tl.tensor,
    context_lens: tl.tensor,
    out: tl.tensor,
    partial_out: tl.tensor,
    partial_top: tl.tensor,
    partial_sum: tl.tensor,
    arrivals: tl.tensor,
    table_stride: tl.tensor,
    max_splits: tl.tensor,
    scale: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    MERGED_BY_LAST: tl.constexpr,
    IN_TURN: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One split of one row, or several in turn; the query heads of one key head."""
    row_head, first_split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head = row_head // KV_HEADS, tl.program_id(0) % KV_HEADS
    # The step's inputs are older than the launch before this one: no need to wait for it.
    context_len = tl.load(context_lens + row)
    table = block_tables + row * table_stride
    rows_K2 = _split_rows(table, first_split, context_len, head, KV_HEADS, BLOCK_SIZE)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    num_splits = tl.maximum(tl.cdiv(context_len, SPLIT_KEYS), 1)
    operands = (
        queries,
        keys,
        values,
        out,
        (partial_out, partial_top, partial_sum, arrivals),
        max_splits,
        scale,
    )
    if IN_TURN:
        for split_index in tl.range(first_split, num_splits, tl.num_programs(1), num_stages=1):
            if split_index > first_split:
                rows_K2 = _split_rows(table, split_index, context_len, head, KV_HEADS, BLOCK_SIZE)
            _attend_to_split(
                operands, rows_K2, row_head, split_index, num_splits, context_len,
                GROUP, WIDTH, ROWS, MERGED_BY_LAST, PRECISION, STAGES,
            )  # fmt: skip
    elif first_split < num_splits:
        _attend_to_split(
            operands, rows_K2, row_head, first_split, num_splits, context_len,
            GROUP, WIDTH, ROWS, MERGED_BY_LAST, PRECISION, STAGES,
        )  # fmt: skip


@triton.jit
def _attend_to_split(
    operands: tl.tuple,
    rows_K2: tl.tuple,
    row_head: tl.tensor,
    split_index: tl.tensor,
    num_splits: tl.tensor,
    context_len: tl.tensor,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    MERGED_BY_LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    queries, keys, values, out, partials, max_splits, scale = operands
    row0_K, row1_K = rows_K2
    member_R, column_C = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    offset_RC = (row_head * GROUP + member_R)[:, None] * WIDTH + column_C[None, :]
    q_RC = tl.load(queries + offset_RC, mask=(member_R < GROUP)[:, None], other=0.0)
    key_K = split_index * SPLIT_KEYS + tl.arange(0, TILE_KEYS)
    split_keys = tl.minimum(context_len - split_index * SPLIT_KEYS, SPLIT_KEYS)
    split = new_split(ROWS, WIDTH)
    for tile in tl.range(0, tl.cdiv(split_keys, TILE_KEYS), num_stages=STAGES):
        is_key_K = key_K + tile * TILE_KEYS < context_len
        offset_KC = tl.where(tile == 0, row0_K, row1_K).to(tl.int64)[:, None] * WIDTH + column_C[None, :]
        keys_KC = tl.load(keys + offset_KC, mask=is_key_K[:, None], other=0.0)
        values_KC = tl.load(values + offset_KC, mask=is_key_K[:, None], other=0.0)
        scores_RK = tile_scores(q_RC, keys_KC, is_key_K[None, :], True, PRECISION)
        split = add_tile(split, scores_RK, values_KC, scale, True, PRECISION)
    settle(
        summed(split), split_index, num_splits, row_head, member_R, out, partials, max_splits,
        ROWS, GROUP, WIDTH, MERGED_BY_LAST,
    )  # fmt: skip


@triton.jit
def _split_rows(
    table: tl.tensor,
    split_index: tl.tensor,
    context_len: tl.tensor,
    head: tl.tensor,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The cache's rows of both tiles of a split."""
    key_K = split_index * SPLIT_KEYS + tl.arange(0, TILE_KEYS)
    row0_K = cache_rows(table, key_K, key_K < context_len, head, KV_HEADS, BLOCK_SIZE)
    next_K = key_K + TILE_KEYS
    return row0_K, cache_rows(table, next_K, next_K < context_len, head, KV_HEADS, BLOCK_SIZE)


def _warps_and_stages(dtype: torch.dtype, device: torch.device, num_programs: int) -> tuple[int, int]:
    """Warps of a program, and how far its loads run ahead; no choice changes a bit of the result.

    Where each program has a multiprocessor for itself, all of a split is under way at once; else room for
    three programs beside each other does more, as measured on an H100.
    """
    if dtype == torch.float32:
        return 8, 1  # for tests: no tensor cores, and little room
    if torch.version.hip:
        return 4, 1
    return 4, 3 if num_programs <= num_processors(device) else 2


def _programs_of_row(num_row_heads: int, max_splits: int) -> int:
    """Programs that share the splits of a row and key head."""
    return min(max_splits, max(1, _MAX_PROGRAMS // num_row_heads))


def decode_attention(
    q_BHC: Tensor,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    block_tables_BM: Tensor,
    context_lens_B: Tensor,
    *,
    max_context: int,
    out_BQ: Tensor | None = None,
    arrivals_X: Tensor | None = None,
) -> Tensor:
    """Let one token of each sequence attend to all of its sequence's keys.

    Block tables and lengths must not be written by the launch right before this one: they are read ahead
    of its end.

    Args:
        q_BHC: The queries, contiguous.
        keys_NSHC: The layer's keys, the tokens' own among them.
        values_NSHC: The layer's values.
        block_tables_BM: int32, rows contiguous.
        context_lens_B: int32, keys of each sequence; 0 for a row that only pads, which gives zeros.
        max_context: Keys of the longest sequence, or more; what a graph is captured for.
        out_BQ: Where to put the result; a new tensor by default.
        arrivals_X: int32 zeros, B * J or more, and zeros again after the launch; launches that may run at
            the same time need their own. With them, up to 1,024 keys take a single launch.

    Returns:
        The heads' outputs side by side, [B, H * C].
    """
    batch, num_heads, width = q_BHC.shape
    if out_BQ is None:
        out_BQ = q_BHC.new_empty(batch, num_heads * width)
    block_size, kv_heads = keys_NSHC.shape[1:3]
    group, device = num_heads // kv_heads, q_BHC.device
    partials = Partials.for_rows(out_BQ, width, max_context, arrivals_X)
    programs = _programs_of_row(batch * kv_heads, partials.max_splits)
    num_warps, stages = _warps_and_stages(q_BHC.dtype, device, batch * kv_heads * programs)
    _decode_kernel[(batch * kv_heads, programs)](
        q_BHC, keys_NSHC, values_NSHC, block_tables_BM, context_lens_B, out_BQ, *partials[:4],
        block_tables_BM.stride(0), partials.max_splits, score_scale(width),
        KV_HEADS=kv_heads, GROUP=group, WIDTH=width, BLOCK_SIZE=block_size,
        ROWS=max(_ROWS, power_of_2(group)), MERGED_BY_LAST=partials.arrivals_X is not None,
        IN_TURN=programs < partials.max_splits, PRECISION=dot_precision(q_BHC.dtype), STAGES=stages,
        DEPENDENT=is_dependent(device), num_warps=num_warps, enable_fp_fusion=False, **launch_options(device),
    )  # fmt: skip
    partials.merge(out_BQ, context_lens_B, kv_heads=kv_heads, group=group, width=width)
    return out_BQ


def decode_attention_reference(
    q_BHC: Tensor,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    block_tables_BM: Tensor,
    context_lens_B: Tensor,
    *,
    max_context: int,
    out_BQ: Tensor | None = None,
) -> Tensor:
    """The same in plain torch: a prefill of one token each."""
    assert int(context_lens_B.max()) <= max_context
    bounds_B1 = torch.arange(q_BHC.shape[0] + 1, dtype=torch.int32)
    return prefill_attention_reference(
        q_BHC,
        keys_NSHC,
        values_NSHC,
        block_tables_BM,
        bounds_B1,
        context_lens_B,
        max_query_len=1,
        out_TQ=out_BQ,
    )
