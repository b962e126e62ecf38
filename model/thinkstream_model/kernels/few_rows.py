"""Which products of a few rows take the kernels of ``few_rows_hopper``, if there are any.

``dense``, ``router`` and ``TritonOps`` ask here before they launch their own, which give the same bits.

T rows, D depth, O outputs, P parts, E experts, K experts a row, I inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import is_hopper
from .optional_gluon import OptionalGluon

_MAX_ROWS = 8
"""Up to so many rows they are faster, as measured on an H100."""

hopper_kernels = OptionalGluon("products of a few rows", "a lone job's tokens take a fifth longer")
with hopper_kernels.importing():
    from . import few_experts_hopper, few_rows_hopper


def are_few(hidden_TD: Tensor) -> bool:
    """Whether there are kernels for so few rows of this kind."""
    return hopper_kernels.is_usable and hidden_TD.shape[0] <= _MAX_ROWS and _is_kind(hidden_TD)


def try_multiply(hidden_TD: Tensor, weight_OD: Tensor, out_PTO: Tensor) -> bool:
    """Multiply each row by a matrix, the depth cut into the parts of ``out_PTO``.

    The weights must not be written by the launch before this one.

    Returns:
        Whether it is done.
    """
    if not are_few(hidden_TD) or not few_rows_hopper.is_suited(hidden_TD, weight_OD, out_PTO):
        return False
    return hopper_kernels.try_launch(few_rows_hopper.multiply, hidden_TD, weight_OD, out_PTO)


def try_experts(hidden_TD: Tensor, slots_TK: Tensor, gate_up_E2ID: Tensor, down_EDI: Tensor) -> Tensor | None:
    """Send each row through its experts; the weights must not be written by the launch before this one.

    Returns:
        What ``Ops.experts`` does; None where it is not done.
    """
    operands = hidden_TD, slots_TK, gate_up_E2ID, down_EDI
    if not are_few(hidden_TD) or not few_experts_hopper.is_suited(*operands):
        return None
    outputs_TKD = hidden_TD.new_empty(*slots_TK.shape, down_EDI.shape[1])
    is_done = hopper_kernels.try_launch(few_experts_hopper.experts, *operands, outputs_TKD)
    return outputs_TKD if is_done else None


def _is_kind(hidden_TD: Tensor) -> bool:
    return hidden_TD.dtype == torch.bfloat16 and is_hopper(hidden_TD.device)
