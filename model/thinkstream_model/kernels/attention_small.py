"""Attention of a small batch of decoded rows in one launch, from the product of queries, keys and values on.

What ``prologue.py`` and ``attention_decode.py`` do in two: a program norms and turns the query heads of one
key head, and the new key beside them, in every split of the keys. The last split writes the new key and
value into the cache and attends to them from registers. A split's old keys are one tile, which is on its
way before the queries are there. Sums and roundings are others than there, and so are the bits.

B sequences, Q width of queries, keys and values together, H query heads, J key heads, G query heads per key
head, C width of a head, N blocks, S tokens of a block, R rows of a program, K keys of a split.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.inputs import StepInputs
from thinkstream_model.rope import Rotation

from .attention_decode import decode_attention_reference
from .launch import dot_precision, is_dependent, launch_options
from .prologue import attention_prologue_reference
from .running_softmax import SPLIT_KEYS, cache_rows, merge, new_result, score_scale
from .splits import Partials, settle
from .tiles import power_of_2

_ROWS = 16  # the fewest that a dot takes
_MAX_HEAD_BYTES = 256
_NUM_WARPS = 8


@triton.jit
def _factors(
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    position: tl.tensor,
    is_q_R1: tl.tensor,
    WIDTH: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """What a head's numbers are multiplied by to be scaled and turned, and what the others of their pairs."""
    half: tl.constexpr = WIDTH // 2
    own_1C = tl.arange(0, WIDTH)[None, :]
    other_1C = (own_1C + half) % WIDTH
    own_RC = tl.where(is_q_R1, tl.load(q_norm + own_1C), tl.load(k_norm + own_1C)).to(tl.float32)
    other_RC = tl.where(is_q_R1, tl.load(q_norm + other_1C), tl.load(k_norm + other_1C)).to(tl.float32)
    angle_1C = position * half + own_1C % half
    sin_1C = tl.load(sin + angle_1C)
    return own_RC * tl.load(cos + angle_1C), other_RC * tl.where(own_1C < half, -sin_1C, sin_1C)


@triton.jit
def _normed_and_turned(
    heads_R1: tl.tensor, is_there_R1: tl.tensor, factors: tl.tuple, eps: tl.tensor, WIDTH: tl.constexpr
) -> tl.tensor:
    """The heads that start at ``heads_R1``, in float32; half a head away is the other number of a pair."""
    own_RC, other_RC = factors
    column_1C = tl.arange(0, WIDTH)[None, :]
    head_RC = tl.load(heads_R1 + column_1C, mask=is_there_R1, other=0.0).to(tl.float32)
    turned_RC = tl.load(heads_R1 + (column_1C + WIDTH // 2) % WIDTH, mask=is_there_R1, other=0.0)
    turned_RC = head_RC * own_RC + turned_RC.to(tl.float32) * other_RC
    return turned_RC * tl.rsqrt(tl.sum(head_RC * head_RC, 1) / WIDTH + eps)[:, None]


@triton.jit
def _attend(
    q_RC: tl.tensor, keys_KC: tl.tensor, values_KC: tl.tensor, is_key_K: tl.tensor, scale: tl.tensor,
    PRECISION: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """What a split's keys give, as ``running_softmax.merge`` takes it; none of them gives nothing."""
    scores_RK = tl.dot(q_RC, tl.trans(keys_KC), input_precision=PRECISION) * scale
    scores_RK = tl.where(is_key_K[None, :], scores_RK, float("-inf"))
    top_R = tl.max(scores_RK, 1)
    weights_RK = tl.exp2(scores_RK - tl.where(top_R == float("-inf"), 0.0, top_R)[:, None])
    out_RC = tl.dot(weights_RK.to(values_KC.dtype), values_KC, input_precision=PRECISION)
    return top_R, tl.sum(weights_RK, 1), out_RC


@triton.jit(
    do_not_specialize=("table_stride", "max_splits"),
    do_not_specialize_on_alignment=(
        "positions", "slots", "block_tables", "context_lens", "partial_top", "partial_sum",
    ),
)  # fmt: skip
def _attend_small_kernel(
    qkv: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
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
    eps: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    MERGED_BY_LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One split of one row, the query heads of one key head and that head's new key."""
    row_head, split_index = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head = row_head // KV_HEADS, tl.program_id(0) % KV_HEADS
    member_R, column_C = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    # The step's inputs, the weights and old keys are older than the launch before this one: all that is
    # read of them is on its way before the wait.
    own_key = tl.load(context_lens + row) - 1
    key_K = split_index * SPLIT_KEYS + tl.arange(0, SPLIT_KEYS)
    is_old_K = key_K < own_key
    row_K = cache_rows(block_tables + row * table_stride, key_K, is_old_K, head, KV_HEADS, BLOCK_SIZE)
    offset_KC = row_K.to(tl.int64)[:, None] * WIDTH + column_C[None, :]
    keys_KC = tl.load(keys + offset_KC, mask=is_old_K[:, None], other=0.0)
    values_KC = tl.load(values + offset_KC, mask=is_old_K[:, None], other=0.0)
    slot = tl.load(slots + row)
    is_q_R = member_R < GROUP
    position = tl.load(positions + row)
    factors = _factors(q_norm, k_norm, cos, sin, position, is_q_R[:, None], WIDTH)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    num_splits = tl.maximum(tl.cdiv(own_key + 1, SPLIT_KEYS), 1)
    if split_index < num_splits:
        # Behind the query heads, the new key; what is behind that is zero.
        qkv_heads = qkv + row * ((GROUP + 2) * KV_HEADS * WIDTH)
        heads_R = qkv_heads + tl.where(is_q_R, head * GROUP + member_R, GROUP * KV_HEADS + head) * WIDTH
        turned_RC = _normed_and_turned(heads_R[:, None], (member_R <= GROUP)[:, None], factors, eps, WIDTH)
        turned_RC = turned_RC.to(keys_KC.dtype)
        found = merge(
            new_result(ROWS, WIDTH), _attend(turned_RC, keys_KC, values_KC, is_old_K, scale, PRECISION)
        )
        if split_index == num_splits - 1:
            k_C = tl.sum(tl.where((member_R == GROUP)[:, None], turned_RC.to(tl.float32), 0.0), 0)
            v_C = tl.load(qkv_heads + ((GROUP + 1) * KV_HEADS + head) * WIDTH + column_C)
            if slot >= 0:
                new_row = (slot * KV_HEADS + head) * WIDTH
                tl.store(keys + new_row + column_C, k_C.to(keys_KC.dtype))
                tl.store(values + new_row + column_C, v_C)
            own_R = tl.sum(turned_RC.to(tl.float32) * k_C[None, :], 1) * scale
            own_RC = tl.zeros((ROWS, WIDTH), tl.float32) + v_C.to(tl.float32)[None, :]
            found = merge(found, (own_R, tl.full((ROWS,), 1.0, tl.float32), own_RC))
        settle(
            found, split_index, num_splits, row_head, member_R, out,
            (partial_out, partial_top, partial_sum, arrivals), max_splits,
            ROWS, GROUP, WIDTH, MERGED_BY_LAST,
        )  # fmt: skip


def is_suited(keys_NSHC: Tensor) -> bool:
    """Whether keys and values of a split fit into shared memory beside each other.

    16-bit heads of 128 do, in 72 KB; in float32 they would take 264.
    """
    return keys_NSHC.shape[3] * keys_NSHC.element_size() <= _MAX_HEAD_BYTES


def attend_small(
    qkv_BQ: Tensor,
    q_norm_C: Tensor,
    k_norm_C: Tensor,
    rotary: Rotation,
    inputs: StepInputs,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    eps: float,
    *,
    arrivals_X: Tensor | None = None,
) -> Tensor:
    """Norm and rotate, write into the cache, and let one token of each sequence attend to all of its keys.

    None of the step's inputs and no old keys may be written by the launch right before this one: they are
    read ahead of its end.

    Args:
        qkv_BQ: Query, key and value heads side by side.
        q_norm_C: Weight of the query heads' norm.
        k_norm_C: Weight of the key heads' norm.
        rotary: float32, of every position.
        inputs: One token of each sequence; for a row that only pads, the slot is -1, which leaves the cache
            alone. The longest length on the host is what a graph is captured for.
        keys_NSHC: The layer's keys.
        values_NSHC: The layer's values.
        eps: Of the norm.
        arrivals_X: See ``decode_attention``.

    Returns:
        The heads' outputs side by side, [B, H * C].
    """
    batch, (block_size, kv_heads, width) = qkv_BQ.shape[0], keys_NSHC.shape[1:]
    group, device = qkv_BQ.shape[1] // width // kv_heads - 2, qkv_BQ.device
    assert qkv_BQ.is_contiguous()
    out_BQ = qkv_BQ.new_empty(batch, kv_heads * group * width)
    partials = Partials.for_rows(out_BQ, width, max(inputs.context_lens), arrivals_X)
    _attend_small_kernel[(batch * kv_heads, partials.max_splits)](
        qkv_BQ, q_norm_C, k_norm_C, *rotary, inputs.positions_T, inputs.slot_mapping_T,
        keys_NSHC, values_NSHC, inputs.block_tables_BM, inputs.context_lens_B, out_BQ, *partials[:4],
        inputs.block_tables_BM.stride(0), partials.max_splits, score_scale(width), eps,
        KV_HEADS=kv_heads, GROUP=group, WIDTH=width, BLOCK_SIZE=block_size,
        ROWS=max(_ROWS, power_of_2(group + 1)), MERGED_BY_LAST=partials.arrivals_X is not None,
        PRECISION=dot_precision(qkv_BQ.dtype),
        DEPENDENT=is_dependent(device), num_warps=_NUM_WARPS, **launch_options(device),
    )  # fmt: skip
    partials.merge(out_BQ, inputs.context_lens_B, kv_heads=kv_heads, group=group, width=width)
    return out_BQ


def attend_small_reference(
    qkv_BQ: Tensor,
    q_norm_C: Tensor,
    k_norm_C: Tensor,
    rotary: Rotation,
    inputs: StepInputs,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    eps: float,
) -> Tensor:
    """The same in plain torch."""
    pages = (keys_NSHC, values_NSHC, inputs.block_tables_BM)
    q_BHC = attention_prologue_reference(
        qkv_BQ, q_norm_C, k_norm_C, *rotary, inputs.positions_T, inputs.slot_mapping_T, *pages[:2], eps
    )
    return decode_attention_reference(
        q_BHC, *pages, inputs.context_lens_B, max_context=max(inputs.context_lens)
    )
