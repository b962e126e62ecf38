"""Dense products of a small batch, without tensor cores.

A program's channels go from memory into registers whole, before it waits for the rows, and are multiplied
there as one row after the other passes by. The norm that comes before a product and the addition that
comes after it are done on the way: every program norms the rows for itself. The sums are in another order
than those of ``dense``, so the bits are others than there.

T rows, D depth, O outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.rms_norm import rms_norm

from .launch import is_dependent, launch_options
from .tiles import num_tiles, power_of_2

_BLOCK_NUMBERS = 8_192
"""Weights of a program. Measured on an H100: 82% of its bandwidth at a depth of 2,048, 77% at 4,096."""


@triton.jit(do_not_specialize=("num_rows",))
def _dense_small_kernel(
    rows: tl.tensor,
    weight: tl.tensor,
    gain: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    normed: tl.tensor,
    num_rows: tl.tensor,
    eps: tl.tensor,
    DEPTH: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    IS_NORMED: tl.constexpr,
    IS_ADDED: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Some channels of all rows; the first program also stores the normed rows."""
    channels = tl.program_id(0).to(tl.int64) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    columns = tl.arange(0, BLOCK_DEPTH)
    inside = columns < DEPTH
    # Before the wait, for which the device would else lie idle: weights are always there.
    places = weight + tl.minimum(channels, NUM_OUTPUTS - 1)[:, None] * DEPTH + columns[None, :]
    tile = tl.load(places, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
    if IS_NORMED:
        gains = tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    dtype: tl.constexpr = rows.dtype.element_ty
    for row in tl.range(0, num_rows):
        values = tl.load(rows + row * DEPTH + columns, mask=inside, other=0.0).to(tl.float32)
        if IS_NORMED:
            scale = tl.rsqrt(tl.sum(values * values) / DEPTH + eps)
            rounded = ((values * scale).to(dtype).to(tl.float32) * gains).to(dtype)
            if tl.program_id(0) == 0:
                tl.store(normed + row * DEPTH + columns, rounded, mask=inside)
            values = rounded.to(tl.float32)
        total = tl.sum(tile.to(tl.float32) * values[None, :], 1)
        place = row * NUM_OUTPUTS + channels
        if IS_ADDED:
            base = tl.load(residual + place, mask=channels < NUM_OUTPUTS, other=0.0).to(tl.float32)
            total = total.to(dtype).to(tl.float32) + base
        tl.store(out + place, total.to(out.dtype.element_ty), mask=channels < NUM_OUTPUTS)


def norm_linear_small(
    residual_TD: Tensor,
    gain_D: Tensor,
    weight_OD: Tensor,
    eps: float,
    *,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Norm every row and multiply it by a matrix.

    Args:
        residual_TD: The rows.
        gain_D: Weight of the norm.
        weight_OD: The matrix.
        eps: Guards the norm's root.
        out_dtype: Kind of the product, which is summed in float32; that of the rows where none is given.

    Returns:
        The product, [T, O], and the normed rows, [T, D].
    """
    out_TO = residual_TD.new_empty(residual_TD.shape[0], weight_OD.shape[0], dtype=out_dtype)
    normed_TD = torch.empty_like(residual_TD)
    _launch(residual_TD, weight_OD, out_TO, gain_D=gain_D, normed_TD=normed_TD, eps=eps)
    return out_TO, normed_TD


def norm_linear_small_reference(
    residual_TD: Tensor,
    gain_D: Tensor,
    weight_OD: Tensor,
    eps: float,
    *,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """``norm_linear_small`` in plain torch."""
    normed_TD = rms_norm(residual_TD, gain_D, eps)
    return (normed_TD.float() @ weight_OD.float().t()).to(out_dtype or residual_TD.dtype), normed_TD


def linear_add_small(hidden_TD: Tensor, weight_OD: Tensor, residual_TO: Tensor) -> Tensor:
    """Multiply every row by a matrix and add what comes of it to the residual stream.

    Returns:
        The sum, [T, O].
    """
    out_TO = torch.empty_like(residual_TO)
    _launch(hidden_TD, weight_OD, out_TO, residual_TO=residual_TO)
    return out_TO


def linear_add_small_reference(hidden_TD: Tensor, weight_OD: Tensor, residual_TO: Tensor) -> Tensor:
    """``linear_add_small`` in plain torch."""
    return (hidden_TD.float() @ weight_OD.float().t()).to(residual_TO.dtype) + residual_TO


def _launch(
    rows_TD: Tensor,
    weight_OD: Tensor,
    out_TO: Tensor,
    *,
    gain_D: Tensor | None = None,
    residual_TO: Tensor | None = None,
    normed_TD: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    assert rows_TD.is_contiguous() and weight_OD.is_contiguous()
    assert residual_TO is None or residual_TO.is_contiguous()
    (num_rows, depth), num_outputs, device = rows_TD.shape, weight_OD.shape[0], rows_TD.device
    block_depth = power_of_2(depth)
    channels = max(1, _BLOCK_NUMBERS // block_depth)
    _dense_small_kernel[(num_tiles(num_outputs, channels),)](
        rows_TD, weight_OD, gain_D, residual_TO, out_TO, normed_TD, num_rows, eps,
        DEPTH=depth, NUM_OUTPUTS=num_outputs, IS_NORMED=gain_D is not None,
        IS_ADDED=residual_TO is not None, BLOCK_CHANNELS=channels, BLOCK_DEPTH=block_depth,
        DEPENDENT=is_dependent(device), num_warps=4, **launch_options(device),
    )  # fmt: skip
