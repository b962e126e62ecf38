"""The arithmetic that both attention kernels are made of, so that decode and prefill agree bit for bit.

A row's keys are cut into splits of 256 counted from the sequence's start, and a split into tiles of 128.
A split is worked out by itself, tile after tile, and then merged into what its predecessors gave, so it
makes no difference whether one program does the splits in turn or many do them side by side. Keys that a
row must not see weigh exactly zero, and a tile or a split full of them changes nothing.

Sums along a row run through the tensor cores, in the order of the keys: the weights' own sum is their
product with a column of ones, for a sum inside a program depends on the layout that the compiler picks.
Kernels that call this are launched with ``enable_fp_fusion=False``: which products are fused with which
additions would otherwise be each kernel's own affair.

What is summed so far goes by three names together: ``top_R``, the largest score; the sum of weights,
``sum_R`` or, inside a split, the equal columns ``sum_RX``; and ``out_RC``, the weighted sum of values.

R rows (a query head of a token), K keys of a tile, C width of a head, X equal columns.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from thinkstream_model import step_sizes

TILE_KEYS = tl.constexpr(128)
SPLIT_KEYS = tl.constexpr(step_sizes.SPLIT_KEYS)
_SUM_COLUMNS = tl.constexpr(16)  # the narrowest matrix that a dot takes


def score_scale(head_dim: int) -> float:
    """Factor of the scores; exponentials are taken to the base 2, which is what the device has."""
    return 1.0 / (math.sqrt(head_dim) * math.log(2.0))


@triton.jit
def new_split(ROWS: tl.constexpr, WIDTH: tl.constexpr) -> tl.tuple:
    """What a split's first tile is added to."""
    top_R = tl.full((ROWS,), float("-inf"), tl.float32)
    return top_R, tl.zeros((ROWS, _SUM_COLUMNS), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)


@triton.jit
def new_result(ROWS: tl.constexpr, WIDTH: tl.constexpr) -> tl.tuple:
    """What the first split is merged into."""
    top_R = tl.full((ROWS,), float("-inf"), tl.float32)
    return top_R, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)


@triton.jit
def _finite(top_R: tl.tensor) -> tl.tensor:
    """What to subtract from scores: where no key was seen yet, minus infinity less itself is no number."""
    return tl.where(top_R == float("-inf"), 0.0, top_R)


@triton.jit
def tile_scores(
    q_RC: tl.tensor, keys_KC: tl.tensor, visible_RK: tl.tensor, MASKED: tl.constexpr, PRECISION: tl.constexpr
) -> tl.tensor:
    """Products of queries and keys; ``visible_RK`` counts only where ``MASKED``."""
    scores_RK = tl.dot(q_RC, tl.trans(keys_KC), input_precision=PRECISION)
    return tl.where(visible_RK, scores_RK, float("-inf")) if MASKED else scores_RK


@triton.jit
def add_tile(
    split: tl.tuple,
    scores_RK: tl.tensor,
    values_KC: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tuple:
    """Add a tile to its split; where the top is minus infinity, what stood there counts for nothing."""
    top_R, sum_RX, out_RC = split
    new_top_R = tl.maximum(top_R, tl.max(scores_RK, 1) * scale)
    shift_R = _finite(new_top_R) if MASKED else new_top_R
    weights_RK = tl.exp2(tl.fma(scores_RK, scale, -shift_R[:, None])).to(values_KC.dtype)
    ones_KX = tl.full((TILE_KEYS, _SUM_COLUMNS), 1.0, values_KC.dtype)
    # Both products stand before both dots: between them they would make the second wait for the first.
    keep_R1 = tl.exp2(top_R - shift_R)[:, None]
    sum_RX, out_RC = sum_RX * keep_R1, out_RC * keep_R1
    sum_RX = tl.dot(weights_RK, ones_KX, sum_RX, input_precision=PRECISION)
    out_RC = tl.dot(weights_RK, values_KC, out_RC, input_precision=PRECISION)
    return new_top_R, sum_RX, out_RC


@triton.jit
def summed(split: tl.tuple) -> tl.tuple:
    """A split ready to be merged: its weights' sum taken out of the equal columns."""
    top_R, sum_RX, out_RC = split
    return top_R, tl.max(sum_RX, 1), out_RC


@triton.jit
def merge(result: tl.tuple, split: tl.tuple) -> tl.tuple:
    """Take the next split into the result."""
    top_R, sum_R, out_RC = result
    split_top_R, split_sum_R, split_out_RC = split
    new_top_R = tl.maximum(top_R, split_top_R)
    shift_R = _finite(new_top_R)
    keep_R, share_R = tl.exp2(top_R - shift_R), tl.exp2(split_top_R - shift_R)
    sum_R = tl.fma(split_sum_R, share_R, sum_R * keep_R)
    out_RC = tl.fma(split_out_RC, share_R[:, None], out_RC * keep_R[:, None])
    return new_top_R, sum_R, out_RC


@triton.jit
def mean(result: tl.tuple) -> tl.tensor:
    """The weighted mean of the values; a row that saw no key gives zeros."""
    _, sum_R, out_RC = result
    return out_RC / tl.where(sum_R == 0.0, 1.0, sum_R)[:, None]


@triton.jit
def cache_rows(
    block_table: tl.tensor,
    keys_K: tl.tensor,
    is_key_K: tl.tensor,
    head: tl.tensor,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> tl.tensor:
    """Rows of the cache, seen as [N * S * H, C], of a sequence's keys; what is no key gets a valid row."""
    block_K = tl.load(block_table + keys_K // BLOCK_SIZE, mask=is_key_K, other=0)
    return (block_K * BLOCK_SIZE + keys_K % BLOCK_SIZE) * KV_HEADS + head
