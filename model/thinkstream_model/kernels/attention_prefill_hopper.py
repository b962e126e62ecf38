"""Attention of many tokens on Hopper, where one warp fetches keys and values while eight others multiply.

The same as ``attention_prefill`` bit for bit, in two thirds of the time: Triton has every warp wait in turn
for what it loads and for what it multiplies. Written in Gluon, Triton's own language below tiles, in which
warps differ, and shared memory, barriers and the tensor cores' instructions have names.

T tokens, H query heads, C width of a head, Q = H * C, N blocks, S tokens of a block, B sequences, M blocks
of the longest block table, R rows of a warp group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention_softmax import ROWS, SUM_COLUMNS
from .attention_warps import (
    COLUMNS,
    KEYS_EMPTY,
    KEYS_FULL,
    NUM_GROUPS,
    NUM_STAGES,
    PAGE_LAYOUT,
    VALUES_EMPTY,
    VALUES_FULL,
    attend,
    block_barrier,
    fetch,
)
from .launch import is_dependent, is_hopper, launch_options
from .running_softmax import TILE_KEYS, score_scale
from .tiles import power_of_2

NUM_ROWS = NUM_GROUPS.value * ROWS.value
"""Rows of queries of one program."""

_GROUP_REGISTERS, _LOADER_REGISTERS = 232, 24
"""Of a thread that multiplies and of one that fetches: all that a processor has, and measured."""


@gluon.jit
def _sequence_of(
    block: gl.tensor, cu_seqlens: gl.tensor, num_sequences: gl.tensor, TOKENS: gl.constexpr
) -> tuple[gl.tensor | int, gl.tensor]:
    """Which sequence a block of tokens belongs to, and which of its blocks it is."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    num_before = 0
    for first in range(0, num_sequences, 128):
        index = first + gl.arange(0, 128, layout=layout)
        start = gl.load(cu_seqlens + index, mask=index < num_sequences, other=0)
        num_before += gl.sum(((index < num_sequences) & (start // TOKENS + index <= block)).to(gl.int32), 0)
    sequence = num_before - 1
    return sequence, block - sequence - gl.load(cu_seqlens + sequence) // TOKENS


@gluon.jit
def _load_queries(
    queries: gl.tensor,
    q_groups: gl.tensor,
    start: gl.tensor,
    first: gl.tensor,
    query_len: gl.tensor,
    head: gl.tensor,
    KV_HEADS: gl.constexpr,
    HEADS_EACH: gl.constexpr,
    HEAD_ROWS: gl.constexpr,
    WIDTH: gl.constexpr,
) -> None:
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    row_R = gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    column_C = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
    for warp_group in gl.static_range(NUM_GROUPS):
        token_R, member_R = first + warp_group * (ROWS // HEAD_ROWS) + row_R // HEAD_ROWS, row_R % HEAD_ROWS
        is_row_R = (token_R < query_len) & (member_R < HEADS_EACH)
        q_head_R = (start + token_R).to(gl.int64) * (KV_HEADS * HEADS_EACH) + head * HEADS_EACH + member_R
        offset_RC = gl.expand_dims(q_head_R * WIDTH, 1) + gl.expand_dims(column_C, 0)
        q_RC = gl.load(queries + offset_RC, mask=gl.expand_dims(is_row_R, 1), other=0.0)
        q_groups.index(warp_group).store(q_RC)


@gluon.jit
def _new_barriers() -> gl.tensor:
    """A stage's tile is full when its copy says so, and empty when every warp group does."""
    barriers = gl.allocate_shared_memory(gl.int64, [4 * NUM_STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(NUM_STAGES):
        mbarrier.init(barriers.index(KEYS_FULL + stage), count=1)
        mbarrier.init(barriers.index(KEYS_EMPTY + stage), count=NUM_GROUPS)
        mbarrier.init(barriers.index(VALUES_FULL + stage), count=1)
        mbarrier.init(barriers.index(VALUES_EMPTY + stage), count=NUM_GROUPS)
    return barriers  # pyright: ignore[reportReturnType] # typed as what takes them types them


@gluon.jit(
    do_not_specialize=("num_sequences", "table_stride", "no_row"),
    do_not_specialize_on_alignment=("block_tables", "cu_seqlens", "context_lens"),
)
def _prefill_kernel(
    queries: gl.tensor,
    keys: gl.tensor,
    values: gl.tensor,
    block_tables: gl.tensor,
    cu_seqlens: gl.tensor,
    context_lens: gl.tensor,
    out: gl.tensor,
    num_sequences: gl.tensor,
    table_stride: gl.tensor,
    no_row: gl.tensor,
    scale: gl.tensor,
    KV_HEADS: gl.constexpr,
    HEADS_EACH: gl.constexpr,
    HEAD_ROWS: gl.constexpr,
    WIDTH: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    REGISTERS: gl.constexpr,
    LOADER_REGISTERS: gl.constexpr,
    DEPENDENT: gl.constexpr,
) -> None:
    """Some neighbouring tokens of one sequence, the query heads of one key head.

    In one piece, long as it is: what it works out and allocates is what the warps are handed, so a part of
    it taken out would give back nearly every name that it made.
    """
    TOKENS: gl.constexpr = NUM_GROUPS * ROWS // HEAD_ROWS
    PAGES: gl.constexpr = NUM_STAGES * (TILE_KEYS // BLOCK_SIZE) * (WIDTH // COLUMNS)
    ones_layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    head = gl.program_id(1)
    # A sequence's last tokens have the most keys, and what takes longest is best begun first.
    block = gl.num_programs(0) - 1 - gl.program_id(0)
    sequence, sequence_block = _sequence_of(block, cu_seqlens, num_sequences, TOKENS)
    first = sequence_block * TOKENS
    start = gl.load(cu_seqlens + sequence)
    query_len = gl.load(cu_seqlens + sequence + 1) - start
    context_len = gl.load(context_lens + sequence)
    before = context_len - query_len
    is_block = first < query_len
    whole_tiles = gl.where(is_block, (before + first + 1) // TILE_KEYS, 0)
    end_tile = gl.where(is_block, gl.cdiv(gl.minimum(before + first + TOKENS, context_len), TILE_KEYS), 0)
    table = block_tables + sequence.to(gl.int64) * table_stride

    q_groups = gl.allocate_shared_memory(gl.bfloat16, [NUM_GROUPS, ROWS, WIDTH], PAGE_LAYOUT)
    key_pages = gl.allocate_shared_memory(gl.bfloat16, [PAGES, BLOCK_SIZE, COLUMNS], PAGE_LAYOUT)
    value_pages = gl.allocate_shared_memory(gl.bfloat16, [PAGES, BLOCK_SIZE, COLUMNS], PAGE_LAYOUT)
    ones = gl.full([SUM_COLUMNS, TILE_KEYS], 1.0, gl.bfloat16, layout=ones_layout)
    ones_XK = gl.allocate_shared_memory(gl.bfloat16, [SUM_COLUMNS, TILE_KEYS], PAGE_LAYOUT, ones)
    ones_KX = ones_XK.permute((1, 0))
    barriers = _new_barriers()
    if DEPENDENT:  # the step's inputs are older than the launch before this one
        gdc_wait()
        gdc_launch_dependents()
    _load_queries(queries, q_groups, start, first, query_len, head, KV_HEADS, HEADS_EACH, HEAD_ROWS, WIDTH)
    fence_async_shared()
    block_barrier()
    gl.warp_specialize(
        [
            (attend, (0, q_groups, key_pages, value_pages, ones_KX, barriers, out, whole_tiles, end_tile,
                      start, first, query_len, context_len, head, scale,
                      KV_HEADS, HEADS_EACH, HEAD_ROWS, WIDTH, BLOCK_SIZE)),
            (attend, (1, q_groups, key_pages, value_pages, ones_KX, barriers, out, whole_tiles, end_tile,
                      start, first, query_len, context_len, head, scale,
                      KV_HEADS, HEADS_EACH, HEAD_ROWS, WIDTH, BLOCK_SIZE)),
            (fetch, (keys, values, key_pages, value_pages, barriers, end_tile, table,
                     gl.cdiv(context_len, BLOCK_SIZE), no_row, head * WIDTH, WIDTH, BLOCK_SIZE)),
        ],
        [4, 1],
        [REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip


def is_suited(q_THC: Tensor, keys_NSHC: Tensor) -> bool:
    """Whether the kernel does these: bfloat16 on Hopper, heads of 128, blocks that make a tile."""
    (num_heads, width), (block_size, kv_heads) = q_THC.shape[1:], keys_NSHC.shape[1:3]
    is_shape = width == 128 and block_size in (8, 16, 32, 64, 128)
    is_shape &= power_of_2(num_heads // kv_heads) <= ROWS.value
    is_kind = q_THC.dtype == keys_NSHC.dtype == torch.bfloat16
    return is_shape and is_kind and is_hopper(q_THC.device)


def prefill_attention_hopper(
    q_THC: Tensor,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    block_tables_BM: Tensor,
    cu_seqlens_q_B1: Tensor,
    context_lens_B: Tensor,
    out_TQ: Tensor,
) -> Tensor:
    """``prefill_attention`` for what ``is_suited``; the cache is contiguous. Returns ``out_TQ``."""
    num_heads, width = q_THC.shape[1:]
    num_blocks, block_size, kv_heads = keys_NSHC.shape[:3]
    num_sequences = context_lens_B.shape[0]
    head_rows = power_of_2(num_heads // kv_heads)
    tokens = NUM_ROWS // head_rows
    shape, strides = [num_blocks * block_size, kv_heads * width], [kv_heads * width, 1]
    keys, values = (
        TensorDescriptor(cache, shape, strides, [block_size, COLUMNS.value], PAGE_LAYOUT.value)
        for cache in (keys_NSHC, values_NSHC)
    )
    _prefill_kernel[(q_THC.shape[0] // tokens + num_sequences, kv_heads)](
        q_THC, keys, values, block_tables_BM, cu_seqlens_q_B1, context_lens_B, out_TQ,
        num_sequences, block_tables_BM.stride(0), num_blocks * block_size, score_scale(width),
        KV_HEADS=kv_heads, HEADS_EACH=num_heads // kv_heads, HEAD_ROWS=head_rows, WIDTH=width,
        BLOCK_SIZE=block_size, REGISTERS=_GROUP_REGISTERS, LOADER_REGISTERS=_LOADER_REGISTERS,
        DEPENDENT=is_dependent(q_THC.device), num_warps=4, enable_fp_fusion=False,
        **launch_options(q_THC.device),
    )  # fmt: skip
    return out_TQ
