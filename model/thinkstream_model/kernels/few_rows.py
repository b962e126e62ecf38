"""Which products of a few rows take the kernels of ``stream``, if there are any.

``dense``, ``router`` and ``TritonOps`` ask here before they launch their own, which give the same bits.

T rows, D depth, O outputs, P parts, E experts, K experts a row, I inner width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from .launch import is_hopper

logger = logging.getLogger(__name__)

_MAX_ROWS = 8
"""Up to so many rows they are faster, as measured on an H100."""

_NO_STREAM = (
    "this Triton's Gluon is not the one that Hopper's products of a few rows were written in (%r): "
    "without them a lone job's tokens take a fifth longer there, and are the same"
)

# Gluon still changes from one Triton to the next. What it lacks shows here, what it calls otherwise later.
try:
    from . import stream, stream_experts
except (ImportError, AttributeError) as error:
    logger.warning(_NO_STREAM, error)
    stream = stream_experts = None  # type: ignore[assignment]


def are_few(hidden_TD: Tensor) -> bool:
    """Whether there are kernels for so few rows of this kind."""
    is_kind = hidden_TD.dtype == torch.bfloat16 and is_hopper(hidden_TD.device)
    return stream is not None and is_kind and hidden_TD.shape[0] <= _MAX_ROWS


def multiply(hidden_TD: Tensor, weight_OD: Tensor, out_PTO: Tensor) -> bool:
    """Multiply each row by a matrix, the depth cut into the parts of ``out_PTO``.

    The weights must not be written by the launch before this one.

    Returns:
        Whether it is done.
    """
    if stream is None or not are_few(hidden_TD) or not stream.is_suited(hidden_TD, weight_OD, out_PTO):
        return False
    return _is_done(stream.multiply, hidden_TD, weight_OD, out_PTO)


def experts(hidden_TD: Tensor, slots_TK: Tensor, gate_up_E2ID: Tensor, down_EDI: Tensor) -> Tensor | None:
    """Send each row through its experts; the weights must not be written by the launch before this one.

    Returns:
        What ``Ops.experts`` does; None where it is not done.
    """
    operands = hidden_TD, slots_TK, gate_up_E2ID, down_EDI
    if stream_experts is None or not are_few(hidden_TD) or not stream_experts.is_suited(*operands):
        return None
    outputs_TKD = hidden_TD.new_empty(*slots_TK.shape, down_EDI.shape[1])
    return outputs_TKD if _is_done(stream_experts.experts, *operands, outputs_TKD) else None


def _is_done(launch: Callable[..., None], *operands: Tensor) -> bool:
    """Let a kernel do it; once this Triton cannot compile one, none is tried again."""
    global stream, stream_experts
    try:
        launch(*operands)
    except (triton.CompilationError, TypeError, AttributeError) as error:
        logger.warning(_NO_STREAM, error)
        stream = stream_experts = None  # type: ignore[assignment]
        return False
    return True
