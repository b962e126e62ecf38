"""RMS norm, and the residual stream's addition before it, with any sum that was left undone.

One program a row. The sum of squares runs over registers in an order that is the compiler's choice, so
every row of every batch goes through this kernel, with one tile shape, and without fusing products into
sums, which a compiler may do in one variant and not in the next.

T rows, D width, P parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model import rms_norm as plain
from thinkstream_model.ops import Addend, Parts

from .launch import is_dependent, launch_options
from .tiles import power_of_2


@triton.jit
def _norm_kernel(
    values: tl.tensor,
    part_weights: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    values_stride_row: tl.tensor,
    values_stride_part: tl.tensor,
    residual_stride: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    IS_WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Norm one row; with parts, their sum is added first, rounded as a tensor of it would be."""
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    # The weight is not in the L2 cache, the rows are: asked for first, it comes no later than they do.
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = residual.dtype.element_ty
    hidden = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if NUM_PARTS > 0:
        added = tl.zeros((BLOCK,), tl.float32)
        for part in tl.static_range(NUM_PARTS):
            place = values + row * values_stride_row + part * values_stride_part
            value = tl.load(place + columns, mask=inside, other=0.0).to(tl.float32)
            if IS_WEIGHTED:
                value *= tl.load(part_weights + row * NUM_PARTS + part)
            added += value
        hidden += added.to(dtype).to(tl.float32)
        tl.store(total + row * WIDTH + columns, hidden.to(dtype), mask=inside)
        hidden = hidden.to(dtype).to(tl.float32)
    scale = tl.rsqrt(tl.sum(hidden * hidden) / WIDTH + eps)
    scaled = (hidden * scale).to(dtype).to(tl.float32)
    tl.store(normed + row * WIDTH + columns, (scaled * gain).to(dtype), mask=inside)


def rms_norm(hidden_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Scale each row to unit root mean square, in float32, then by the weight.

    Returns:
        [T, D].
    """
    normed_TD = torch.empty_like(hidden_TD, memory_format=torch.contiguous_format)
    _launch(None, hidden_TD, weight_D, eps, normed_TD, None)
    return normed_TD


def rms_norm_reference(hidden_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``rms_norm`` in plain torch."""
    return plain.rms_norm(hidden_TD, weight_D, eps)


def add_rms_norm(
    addend_TD: Addend, residual_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and norm the sum.

    Args:
        addend_TD: What to add, [T, D]; parts are summed in float32, in their order, and rounded once.
        residual_TD: The stream, in whose dtype all results are.
        weight_D: The norm's weight.
        eps: Guards the root.

    Returns:
        The normed sum and the sum, both [T, D].
    """
    parts = addend_TD if isinstance(addend_TD, Parts) else Parts(addend_TD.unsqueeze(1))
    normed_TD = torch.empty_like(residual_TD, memory_format=torch.contiguous_format)
    total_TD = torch.empty_like(normed_TD)
    _launch(parts, residual_TD, weight_D, eps, normed_TD, total_TD)
    return normed_TD, total_TD


def add_rms_norm_reference(
    addend_TD: Addend, residual_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``add_rms_norm`` in plain torch."""
    if isinstance(addend_TD, Parts):
        values_TPD, weights_TP = addend_TD.values_TPD.float(), addend_TD.weights_TP
        if weights_TP is not None:
            values_TPD = values_TPD * weights_TP.unsqueeze(-1)
        sum_TD = torch.zeros_like(values_TPD[:, 0])
        for values_TD in values_TPD.unbind(1):
            sum_TD = sum_TD + values_TD
        addend_TD = sum_TD.to(residual_TD.dtype)
    total_TD = residual_TD + addend_TD
    return plain.rms_norm(total_TD, weight_D, eps), total_TD


def _launch(
    parts: Parts | None,
    residual_TD: Tensor,
    weight_D: Tensor,
    eps: float,
    normed_TD: Tensor,
    total_TD: Tensor | None,
) -> None:
    num_rows, width = residual_TD.shape
    values_TPD, weights_TP = parts or (residual_TD.unsqueeze(1), None)
    assert residual_TD.stride(1) == 1 and values_TPD.stride(2) == 1
    assert weights_TP is None or weights_TP.is_contiguous()
    block = power_of_2(width)
    _norm_kernel[(num_rows,)](
        values_TPD, weights_TP, residual_TD, weight_D, normed_TD, total_TD,
        values_TPD.stride(0), values_TPD.stride(1), residual_TD.stride(0), eps,
        WIDTH=width, NUM_PARTS=values_TPD.shape[1] if parts else 0, IS_WEIGHTED=weights_TP is not None,
        BLOCK=block, DEPENDENT=is_dependent(residual_TD.device), enable_fp_fusion=False,
        num_warps=max(1, min(8, block // 256)), **launch_options(residual_TD.device),
    )  # fmt: skip
