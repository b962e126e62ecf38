"""Attention of many tokens over the paged cache: prefill, chunks of one, and decodes beside them.

A program takes the query heads of one key head for some neighbouring tokens, 128 rows of queries that
share every key they read. Hopper has a kernel of its own for what it does best, with the same bits.

T tokens, H query heads, C width of a head, Q = H * C, N blocks, S tokens of a block, B sequences,
M blocks of the longest block table, R rows of a program, K keys of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import dot_precision, is_dependent, launch_options
from .optional_gluon import OptionalGluon
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

hopper_kernels = OptionalGluon("the attention of prompts", "it takes half as long again")
with hopper_kernels.importing():
    from . import attention_prefill_hopper as hopper


@triton.jit
def _add_tiles(
    result: tl.tuple,
    split: tl.tuple,
    first_tile: tl.tensor,
    end_tile: tl.tensor,
    q_RC: tl.tensor,
    position_R: tl.tensor,
    context_len: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block_table: tl.tensor,
    head: tl.tensor,
    scale: tl.tensor,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
) -> tuple[tl.tuple, tl.tuple]:
    """Take in a run of tiles; the last one's split is left to be merged."""
    column_C = tl.arange(0, WIDTH)
    for tile in tl.range(first_tile, end_tile, num_stages=STAGES):
        key_K = tile * TILE_KEYS + tl.arange(0, TILE_KEYS)
        is_key_K = key_K < context_len if MASKED else key_K >= 0
        row_K = cache_rows(block_table, key_K, is_key_K, head, KV_HEADS, BLOCK_SIZE)
        offset_KC = row_K.to(tl.int64)[:, None] * WIDTH + column_C[None, :]
        if MASKED:
            keys_KC = tl.load(keys + offset_KC, mask=is_key_K[:, None], other=0.0)
            values_KC = tl.load(values + offset_KC, mask=is_key_K[:, None], other=0.0)
        else:
            keys_KC, values_KC = tl.load(keys + offset_KC), tl.load(values + offset_KC)
        scores_RK = tile_scores(q_RC, keys_KC, key_K[None, :] <= position_R[:, None], MASKED, PRECISION)
        # A split is merged at its successor's first tile, when its last dot has ended by itself. Elsewhere
        # nothing is merged, which costs little; a branch would make the compiler hold up all dots.
        is_new_split = tile * TILE_KEYS % SPLIT_KEYS == 0
        top_R, sum_RX, out_RC = split
        result = merge(result, summed((tl.where(is_new_split, top_R, float("-inf")), sum_RX, out_RC)))
        split = (tl.where(is_new_split, float("-inf"), top_R), sum_RX, out_RC)
        split = add_tile(split, scores_RK, values_KC, scale, MASKED, PRECISION)
    return result, split


@triton.jit
def _sequence_of(
    block: tl.tensor, cu_seqlens: tl.tensor, num_sequences: tl.tensor, TOKENS: tl.constexpr
) -> tuple[tl.tensor | int, tl.tensor]:
    """Which sequence a block of tokens belongs to, and which of its blocks it is.

    Sequence i has the blocks from ``start // TOKENS + i`` on, which leaves each room enough.
    """
    num_before = 0
    for first in tl.range(0, num_sequences, 128):
        index = first + tl.arange(0, 128)
        start = tl.load(cu_seqlens + index, mask=index < num_sequences, other=0)
        num_before += tl.sum(((index < num_sequences) & (start // TOKENS + index <= block)).to(tl.int32), 0)
    sequence = num_before - 1
    return sequence, block - sequence - tl.load(cu_seqlens + sequence) // TOKENS


@triton.jit(
    do_not_specialize=("num_sequences", "table_stride"),
    do_not_specialize_on_alignment=("block_tables", "cu_seqlens", "context_lens"),
)
def _prefill_kernel(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block_tables: tl.tensor,
    cu_seqlens: tl.tensor,
    context_lens: tl.tensor,
    out: tl.tensor,
    num_sequences: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """``ROWS // GROUP_ROWS`` tokens of one sequence, the query heads of one key head."""
    TOKENS: tl.constexpr = ROWS // GROUP_ROWS
    head = tl.program_id(1)
    # The step's inputs are older than the launch before this one: no need to wait for it. A sequence's
    # last tokens have the most keys, and what takes longest is best begun first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    sequence, sequence_block = _sequence_of(block, cu_seqlens, num_sequences, TOKENS)
    first = sequence_block * TOKENS
    start = tl.load(cu_seqlens + sequence)
    query_len = tl.load(cu_seqlens + sequence + 1) - start
    context_len = tl.load(context_lens + sequence)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    if first < query_len:
        row_R = tl.arange(0, ROWS)
        token_R, member_R = first + row_R // GROUP_ROWS, row_R % GROUP_ROWS
        is_row_R1 = ((token_R < query_len) & (member_R < GROUP))[:, None]
        q_head_R = (start + token_R).to(tl.int64) * (KV_HEADS * GROUP) + head * GROUP + member_R
        offset_RC = q_head_R[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        q_RC = tl.load(queries + offset_RC, mask=is_row_R1, other=0.0)
        before = context_len - query_len
        whole_tiles = (before + first + 1) // TILE_KEYS
        end_tile = tl.cdiv(tl.minimum(before + first + TOKENS, context_len), TILE_KEYS)
        table = block_tables + sequence.to(tl.int64) * table_stride
        result, split = new_result(ROWS, WIDTH), new_split(ROWS, WIDTH)
        result, split = _add_tiles(
            result, split, 0, whole_tiles, q_RC, before + token_R, context_len, keys, values, table, head,
            scale, KV_HEADS, WIDTH, BLOCK_SIZE, MASKED=False, PRECISION=PRECISION, STAGES=STAGES,
        )  # fmt: skip
        result, split = _add_tiles(
            result, split, whole_tiles, end_tile, q_RC, before + token_R, context_len, keys, values, table,
            head, scale, KV_HEADS, WIDTH, BLOCK_SIZE, MASKED=True, PRECISION=PRECISION, STAGES=1,
        )  # fmt: skip
        mean_RC = mean(merge(result, summed(split)))
        tl.store(out + offset_RC, mean_RC.to(out.dtype.element_ty), mask=is_row_R1)


class _Tiles(NamedTuple):
    """How the kernel is cut; no choice changes a bit of the result."""

    rows: int
    num_warps: int
    stages: int


def _tiles(dtype: torch.dtype, group_rows: int, max_query_len: int) -> _Tiles:
    if dtype == torch.float32:
        return _Tiles(rows=max(16, group_rows), num_warps=8, stages=1)  # for tests, without tensor cores
    stages = 1 if torch.version.hip else 3
    if max_query_len * group_rows <= 16:
        return _Tiles(rows=16, num_warps=4, stages=stages)
    return _Tiles(rows=max(128, group_rows), num_warps=8, stages=stages)


def prefill_attention(
    q_THC: Tensor,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    block_tables_BM: Tensor,
    cu_seqlens_q_B1: Tensor,
    context_lens_B: Tensor,
    max_query_len: int,
    out_TQ: Tensor | None = None,
) -> Tensor:
    """Let every token attend to the keys of its sequence up to its own.

    Block tables and lengths must not be written by the launch right before this one: they are read ahead
    of its end.

    Args:
        q_THC: The queries, contiguous.
        keys_NSHC: The layer's keys, those of this step too.
        values_NSHC: The layer's values.
        block_tables_BM: int32, rows contiguous.
        cu_seqlens_q_B1: int32, where each sequence's tokens start.
        context_lens_B: int32, keys of each sequence; its tokens of this step are the last of them.
        max_query_len: Tokens of the sequence with the most of them.
        out_TQ: Where to put the result; a new tensor by default.

    Returns:
        The heads' outputs side by side, [T, H * C]; undefined for tokens that belong to no sequence.
    """
    num_heads, width = q_THC.shape[1:]
    block_size, kv_heads = keys_NSHC.shape[1:3]
    num_sequences = context_lens_B.shape[0]
    if out_TQ is None:
        out_TQ = q_THC.new_empty(q_THC.shape[0], num_heads * width)
    group = num_heads // kv_heads
    group_rows = power_of_2(group)
    tiles = _tiles(q_THC.dtype, group_rows, max_query_len)
    operands = (q_THC, keys_NSHC, values_NSHC, block_tables_BM, cu_seqlens_q_B1, context_lens_B, out_TQ)
    if _try_hopper(tiles.rows, *operands):
        return out_TQ
    grid = (q_THC.shape[0] // (tiles.rows // group_rows) + num_sequences, kv_heads)
    _prefill_kernel[grid](
        *operands, num_sequences, block_tables_BM.stride(0), score_scale(width),
        KV_HEADS=kv_heads, GROUP=group, GROUP_ROWS=group_rows, WIDTH=width, BLOCK_SIZE=block_size,
        ROWS=tiles.rows, PRECISION=dot_precision(q_THC.dtype), STAGES=tiles.stages,
        DEPENDENT=is_dependent(q_THC.device), num_warps=tiles.num_warps, enable_fp_fusion=False,
        **launch_options(q_THC.device),
    )  # fmt: skip
    return out_TQ


def _try_hopper(rows: int, q_THC: Tensor, keys_NSHC: Tensor, *others: Tensor) -> bool:
    """Let Hopper's kernel do it, if it can."""
    if not hopper_kernels.is_usable or rows < hopper.NUM_ROWS or not hopper.is_suited(q_THC, keys_NSHC):
        return False
    return hopper_kernels.try_launch(hopper.prefill_attention_hopper, q_THC, keys_NSHC, *others)


def prefill_attention_reference(
    q_THC: Tensor,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    block_tables_BM: Tensor,
    cu_seqlens_q_B1: Tensor,
    context_lens_B: Tensor,
    max_query_len: int,
    out_TQ: Tensor | None = None,
) -> Tensor:
    """The same in plain torch: whole rows of scores, one sequence after the other."""
    num_heads, width = q_THC.shape[1:]
    group = num_heads // keys_NSHC.shape[2]
    out_TQ = torch.empty_like(q_THC).flatten(1) if out_TQ is None else out_TQ
    out_THC = out_TQ.zero_().view(-1, num_heads, width)
    bounds = cu_seqlens_q_B1.tolist()
    for sequence, context_len in enumerate(context_lens_B.tolist()):
        tokens = slice(bounds[sequence], bounds[sequence + 1])
        query_len = tokens.stop - tokens.start
        if context_len == 0 or query_len == 0:
            continue
        assert query_len <= max_query_len
        blocks = block_tables_BM[sequence].long()
        keys_HKC, values_HKC = (
            cache_NSHC[blocks].flatten(0, 1)[:context_len].repeat_interleave(group, 1).transpose(0, 1)
            for cache_NSHC in (keys_NSHC, values_NSHC)
        )
        scores_HTK = q_THC[tokens].transpose(0, 1) @ keys_HKC.transpose(1, 2) * width**-0.5
        hidden_TK = torch.ones_like(scores_HTK[0], dtype=torch.bool).triu(context_len - query_len + 1)
        weights_HTK = scores_HTK.masked_fill(hidden_TK, float("-inf")).softmax(-1)
        out_THC[tokens] = (weights_HTK @ values_HKC).transpose(0, 1)
    return out_TQ
