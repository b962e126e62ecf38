"""What comes before attention: norm of query and key heads, rotation, the write into the paged cache.

One kernel for decode and prefill, always with the same tile, so that a token's keys have the same bits
whichever step wrote them.

T tokens, Q width of queries, keys and values together, H heads, C width of a head, P positions,
N blocks, S tokens of a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.rms_norm import rms_norm
from thinkstream_model.rope import Rotation, rotate

from .launch import is_dependent, launch_options

_HEADS_PER_PROGRAM = 8


@triton.jit
def _product(left: tl.tensor, right: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Multiply as tensors of the dtype are multiplied: exactly, then rounded."""
    return (left.to(tl.float32) * right.to(tl.float32)).to(dtype)


@triton.jit(do_not_specialize_on_alignment=("positions", "slots"))
def _prologue_kernel(
    qkv: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    eps: tl.tensor,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One token, ``HEADS`` neighbours of its query, key and value heads."""
    token = tl.program_id(0).to(tl.int64)
    head_H1 = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    half_1C = tl.arange(0, HALF)[None, :]
    is_q_H1 = head_H1 < Q_HEADS
    is_k_H1 = (head_H1 >= Q_HEADS) & (head_H1 < Q_HEADS + KV_HEADS)
    is_v_H1 = (head_H1 >= Q_HEADS + KV_HEADS) & (head_H1 < Q_HEADS + 2 * KV_HEADS)
    dtype: tl.constexpr = qkv.dtype.element_ty
    # The step's inputs and the weights are older than the launch before this one: no need to wait for it.
    slot = tl.load(slots + token)
    angle_1C = tl.load(positions + token) * HALF + half_1C
    cos_1C, sin_1C = tl.load(cos + angle_1C).to(dtype), tl.load(sin + angle_1C).to(dtype)
    weight1_HC = tl.where(is_q_H1, tl.load(q_norm + half_1C), tl.load(k_norm + half_1C))
    weight2_HC = tl.where(is_q_H1, tl.load(q_norm + HALF + half_1C), tl.load(k_norm + HALF + half_1C))
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    offset_HC = head_H1 * (2 * HALF) + half_1C
    row = qkv + token * ((Q_HEADS + 2 * KV_HEADS) * 2 * HALF)
    raw1_HC = tl.load(row + offset_HC, mask=is_q_H1 | is_k_H1 | is_v_H1, other=0.0)
    raw2_HC = tl.load(row + offset_HC + HALF, mask=is_q_H1 | is_k_H1 | is_v_H1, other=0.0)
    wide1_HC, wide2_HC = raw1_HC.to(tl.float32), raw2_HC.to(tl.float32)
    squares_H = tl.sum(wide1_HC * wide1_HC, 1) + tl.sum(wide2_HC * wide2_HC, 1)
    scale_H1 = tl.rsqrt(squares_H / (2 * HALF) + eps)[:, None]
    first_HC = _product((wide1_HC * scale_H1).to(dtype), weight1_HC, dtype)
    second_HC = _product((wide2_HC * scale_H1).to(dtype), weight2_HC, dtype)
    # A difference of two rounded products: the float32 in between is exact enough to round but once.
    turned1_HC = _product(first_HC, cos_1C, dtype).to(tl.float32) - _product(second_HC, sin_1C, dtype)
    turned2_HC = _product(second_HC, cos_1C, dtype).to(tl.float32) + _product(first_HC, sin_1C, dtype)
    to_q = queries + token * (Q_HEADS * 2 * HALF) + offset_HC
    tl.store(to_q, turned1_HC.to(dtype), mask=is_q_H1)
    tl.store(to_q + HALF, turned2_HC.to(dtype), mask=is_q_H1)
    if slot >= 0:
        to_k = keys + (slot * KV_HEADS - Q_HEADS) * (2 * HALF) + offset_HC
        tl.store(to_k, turned1_HC.to(dtype), mask=is_k_H1)
        tl.store(to_k + HALF, turned2_HC.to(dtype), mask=is_k_H1)
        to_v = values + (slot * KV_HEADS - Q_HEADS - KV_HEADS) * (2 * HALF) + offset_HC
        tl.store(to_v, raw1_HC, mask=is_v_H1)
        tl.store(to_v + HALF, raw2_HC, mask=is_v_H1)


def attention_prologue(
    qkv_TQ: Tensor,
    q_norm_C: Tensor,
    k_norm_C: Tensor,
    cos_PC: Tensor,
    sin_PC: Tensor,
    positions_T: Tensor,
    slot_mapping_T: Tensor,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    eps: float,
) -> Tensor:
    """Norm and rotate query and key heads, write keys and values into the cache.

    Args:
        qkv_TQ: Query, key and value heads side by side.
        q_norm_C: Weight of the query heads' norm.
        k_norm_C: Weight of the key heads' norm.
        cos_PC: float32, [P, C / 2].
        sin_PC: float32, [P, C / 2].
        positions_T: int64; not written by the launch before this one, like the slots.
        slot_mapping_T: int64; -1 for a row that only pads, which leaves the cache alone.
        keys_NSHC: The layer's keys.
        values_NSHC: The layer's values.
        eps: Of the norm.

    Returns:
        The queries, [T, H, C].
    """
    num_tokens, kv_heads, width = qkv_TQ.shape[0], keys_NSHC.shape[2], keys_NSHC.shape[3]
    q_heads = qkv_TQ.shape[1] // width - 2 * kv_heads
    q_THC = torch.empty((num_tokens, q_heads, width), dtype=qkv_TQ.dtype, device=qkv_TQ.device)
    grid = (num_tokens, triton.cdiv(q_heads + 2 * kv_heads, _HEADS_PER_PROGRAM))
    _prologue_kernel[grid](
        qkv_TQ, q_norm_C, k_norm_C, cos_PC, sin_PC, positions_T, slot_mapping_T,
        q_THC, keys_NSHC, values_NSHC, eps,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, HALF=width // 2, HEADS=_HEADS_PER_PROGRAM,
        DEPENDENT=is_dependent(qkv_TQ.device), num_warps=2, **launch_options(qkv_TQ.device),
    )  # fmt: skip
    return q_THC


def attention_prologue_reference(
    qkv_TQ: Tensor,
    q_norm_C: Tensor,
    k_norm_C: Tensor,
    cos_PC: Tensor,
    sin_PC: Tensor,
    positions_T: Tensor,
    slot_mapping_T: Tensor,
    keys_NSHC: Tensor,
    values_NSHC: Tensor,
    eps: float,
) -> Tensor:
    """The same in plain torch."""
    kv_heads, width = keys_NSHC.shape[2:]
    q_heads = qkv_TQ.shape[1] // width - 2 * kv_heads
    heads_THC = qkv_TQ.view(-1, q_heads + 2 * kv_heads, width)
    q_THC, k_THC, v_THC = heads_THC.tensor_split([q_heads, q_heads + kv_heads], dim=1)
    rotation = Rotation(cos_PC, sin_PC).at(positions_T, qkv_TQ.dtype)
    k_THC = rotate(rms_norm(k_THC, k_norm_C, eps), rotation)
    is_written_T = slot_mapping_T >= 0
    slots = slot_mapping_T[is_written_T]
    keys_NSHC.view(-1, kv_heads, width)[slots] = k_THC[is_written_T]
    values_NSHC.view(-1, kv_heads, width)[slots] = v_THC[is_written_T]
    return rotate(rms_norm(q_THC, q_norm_C, eps), rotation)
