"""Attention of one token per sequence over the paged cache.

A program takes the query heads of one key head for one split of the keys. Where a row has several
splits, their results lie in memory until they are merged in order: by whichever program comes last where
there are few, else by a kernel of its own.

B sequences, H query heads, J key heads, G query heads per key head, C width of a head, Q = H * C,
N blocks, S tokens of a block, M blocks of the longest block table, R rows of a program, K keys of a tile.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention_prefill import prefill_attention_reference
from .launch import dot_precision, is_dependent, launch_options
from .running_softmax import (
    SPLIT_KEYS,
    TILE_KEYS,
    add_tile,
    cache_rows,
    mean,
    merge,
    new_result,
    new_split,
    score_scale,
    summed,
    tile_scores,
)
from .tiles import power_of_2

_ROWS = 16  # the fewest that a dot takes
_MERGED_BY_LAST = 4  # measured (gpu_kernels.md 4): with more splits a second launch is quicker


@triton.jit
def _merged(
    partial_out: tl.tensor,
    partial_top: tl.tensor,
    partial_sum: tl.tensor,
    first_partial: tl.tensor,
    num_splits: tl.tensor,
    member_R: tl.tensor,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    AHEAD: tl.constexpr,
) -> tl.tensor:
    """The mean over a row's splits, merged in order; ``AHEAD`` of them are loaded at once."""
    column_C = tl.arange(0, WIDTH)
    result = new_result(ROWS, WIDTH)
    for first in tl.range(0, num_splits, AHEAD, num_stages=1):
        for i in tl.static_range(AHEAD):
            is_there_R = (member_R < GROUP) & (first + i < num_splits)  # what is not there changes nothing
            place_R = (first_partial + first + i) * GROUP + member_R
            place_RC = place_R[:, None] * WIDTH + column_C[None, :]
            # Other programs wrote these, so they come from the cache that all share.
            top_R = tl.load(partial_top + place_R, is_there_R, other=float("-inf"), cache_modifier=".cg")
            sum_R = tl.load(partial_sum + place_R, is_there_R, other=0.0, cache_modifier=".cg")
            out_RC = tl.load(partial_out + place_RC, is_there_R[:, None], other=0.0, cache_modifier=".cg")
            result = merge(result, (top_R, sum_R, out_RC))
    return mean(result)


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
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One split of one row, the query heads of one key head."""
    row_head, split_index = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = tl.program_id(0) % KV_HEADS
    # The step's inputs are older than the launch before this one: no need to wait for it.
    context_len = tl.load(context_lens + row_head // KV_HEADS)
    table = block_tables + row_head // KV_HEADS * table_stride
    key_K = split_index * SPLIT_KEYS + tl.arange(0, TILE_KEYS)
    row0_K = cache_rows(table, key_K, key_K < context_len, head, KV_HEADS, BLOCK_SIZE)
    next_K = key_K + TILE_KEYS
    row1_K = cache_rows(table, next_K, next_K < context_len, head, KV_HEADS, BLOCK_SIZE)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    num_splits = tl.maximum(tl.cdiv(context_len, SPLIT_KEYS), 1)
    if split_index < num_splits:
        member_R, column_C = tl.arange(0, ROWS), tl.arange(0, WIDTH)
        is_member_R = member_R < GROUP
        offset_RC = (row_head * GROUP + member_R)[:, None] * WIDTH + column_C[None, :]
        q_RC = tl.load(queries + offset_RC, mask=is_member_R[:, None], other=0.0)
        split_keys = tl.minimum(context_len - split_index * SPLIT_KEYS, SPLIT_KEYS)
        split = new_split(ROWS, WIDTH)
        for tile in tl.range(0, tl.cdiv(split_keys, TILE_KEYS), num_stages=STAGES):
            is_key_K = key_K + tile * TILE_KEYS < context_len
            offset_KC = tl.where(tile == 0, row0_K, row1_K).to(tl.int64)[:, None] * WIDTH + column_C[None, :]
            keys_KC = tl.load(keys + offset_KC, mask=is_key_K[:, None], other=0.0)
            values_KC = tl.load(values + offset_KC, mask=is_key_K[:, None], other=0.0)
            scores_RK = tile_scores(q_RC, keys_KC, is_key_K[None, :], True, PRECISION)
            split = add_tile(split, scores_RK, values_KC, scale, True, PRECISION)
        split = summed(split)
        if num_splits == 1:
            mean_RC = mean(merge(new_result(ROWS, WIDTH), split))
            tl.store(out + offset_RC, mean_RC.to(out.dtype.element_ty), mask=is_member_R[:, None])
        else:
            top_R, sum_R, out_RC = split
            first_partial = row_head * max_splits
            place_R = (first_partial + split_index) * GROUP + member_R
            place_RC = place_R[:, None] * WIDTH + column_C[None, :]
            tl.store(partial_top + place_R, top_R, mask=is_member_R)
            tl.store(partial_sum + place_R, sum_R, mask=is_member_R)
            tl.store(partial_out + place_RC, out_RC, mask=is_member_R[:, None])
            if MERGED_BY_LAST:
                tl.debug_barrier()  # all of the program's stores come before its arrival
                if tl.atomic_add(arrivals + row_head, 1, sem="acq_rel") == num_splits - 1:
                    mean_RC = _merged(
                        partial_out, partial_top, partial_sum, first_partial, num_splits, member_R,
                        ROWS, GROUP, WIDTH, AHEAD=1,
                    )  # fmt: skip
                    tl.store(out + offset_RC, mean_RC.to(out.dtype.element_ty), mask=is_member_R[:, None])
                    tl.store(arrivals + row_head, 0)


@triton.jit(
    do_not_specialize=("max_splits",),
    do_not_specialize_on_alignment=("context_lens", "partial_top", "partial_sum"),
)
def _merge_kernel(
    partial_out: tl.tensor,
    partial_top: tl.tensor,
    partial_sum: tl.tensor,
    context_lens: tl.tensor,
    out: tl.tensor,
    max_splits: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    AHEAD: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """All splits of one row and one query head."""
    row_member = tl.program_id(0).to(tl.int64)
    row_head = row_member // GROUP
    num_splits = tl.cdiv(tl.load(context_lens + row_head // KV_HEADS), SPLIT_KEYS)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    if num_splits > 1:
        member_R = row_member % GROUP + tl.arange(0, 1)
        mean_RC = _merged(
            partial_out, partial_top, partial_sum, row_head * max_splits, num_splits, member_R,
            1, GROUP, WIDTH, AHEAD,
        )  # fmt: skip
        offset_RC = (row_head * GROUP + member_R)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        tl.store(out + offset_RC, mean_RC.to(out.dtype.element_ty))


def _pace(dtype: torch.dtype, num_programs: int) -> tuple[int, int]:
    """Warps of a program, and how far its loads run ahead; no choice changes a bit of the result.

    Where each program has a multiprocessor of an H100 for itself, all of a split is under way at once; else
    room for three programs beside each other does more.
    """
    if dtype == torch.float32:
        return 8, 1  # for tests: no tensor cores, and little room
    if torch.version.hip:
        return 4, 1
    return 4, 3 if num_programs <= 132 else 2


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
    max_splits = max(1, -(-max_context // int(SPLIT_KEYS)))
    group = num_heads // kv_heads
    device = q_BHC.device
    num_partials = batch * num_heads * max_splits if max_splits > 1 else 0
    partial_out = torch.empty(num_partials * width, dtype=torch.float32, device=device)
    partial_top, partial_sum = torch.empty((2, num_partials), dtype=torch.float32, device=device)
    is_merged_by_last = arrivals_X is not None and max_splits <= _MERGED_BY_LAST
    num_warps, stages = _pace(q_BHC.dtype, batch * kv_heads * max_splits)
    _decode_kernel[(batch * kv_heads, max_splits)](
        q_BHC, keys_NSHC, values_NSHC, block_tables_BM, context_lens_B,
        out_BQ, partial_out, partial_top, partial_sum, arrivals_X,
        block_tables_BM.stride(0), max_splits, score_scale(width),
        KV_HEADS=kv_heads, GROUP=group, WIDTH=width, BLOCK_SIZE=block_size,
        ROWS=max(_ROWS, power_of_2(group)),
        MERGED_BY_LAST=is_merged_by_last, PRECISION=dot_precision(q_BHC.dtype), STAGES=stages,
        DEPENDENT=is_dependent(device), num_warps=num_warps, enable_fp_fusion=False, **launch_options(device),
    )  # fmt: skip
    if max_splits > 1 and not is_merged_by_last:
        _merge_kernel[(batch * num_heads,)](
            partial_out, partial_top, partial_sum, context_lens_B, out_BQ, max_splits,
            KV_HEADS=kv_heads, GROUP=group, WIDTH=width, AHEAD=8,
            DEPENDENT=is_dependent(device), num_warps=1, enable_fp_fusion=False, **launch_options(device),
        )  # fmt: skip
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
