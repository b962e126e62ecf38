"""Hands products of many rows to Hopper's own kernel, where it has one that this Triton can compile.

``experts`` and ``dense`` ask here before they launch their own, which give the same bits everywhere.
"""

from __future__ import annotations

import logging

import triton
from torch import Tensor

from thinkstream_model.ops import ExpertLists

logger = logging.getLogger(__name__)

MIN_ROWS = 1_024
"""From so many rows of a step on Hopper's kernel is the faster one, as measured on an H100."""

_NO_HOPPER = (
    "this Triton's Gluon is not the one that Hopper's products of many rows were written in (%r): "
    "without them prompts take a fourteenth longer there, with the same results"
)

# Gluon still changes from one Triton to the next. What it lacks shows here, what it calls otherwise later.
try:
    from . import products_hopper as hopper
except (ImportError, AttributeError) as error:
    logger.warning(_NO_HOPPER, error)
    hopper = None  # type: ignore[assignment]


def is_done_by_hopper(
    rows: Tensor,
    weights: Tensor,
    out: Tensor,
    lists: ExpertLists | None = None,
    *,
    num_parts: int = 1,
    pairs_each: int = 1,
    is_gated: bool = False,
) -> bool:
    """Let Hopper's kernel multiply, if it can; one that this Triton cannot compile is not tried again.

    Args:
        rows: The rows.
        weights: A matrix, or with lists one of each expert.
        out: Where to write.
        lists: Which pairs each expert gets; without them every row is multiplied.
        num_parts: Parts of the depth, each summed by itself, then added up in order; without lists alone.
        pairs_each: Pairs of a row.
        is_gated: Whether the weights are gates over ups, and ``silu(gate) * up`` is wanted; with lists alone.

    Returns:
        Whether the products are written; nothing is, if not.
    """
    global hopper
    if hopper is None or not hopper.is_suited(rows, weights, out, num_parts):
        return False
    try:
        if lists is None:
            hopper.multiply_all(rows, weights, out, num_parts=num_parts)
        else:
            hopper.multiply_listed(rows, weights, lists, out, pairs_each=pairs_each, is_gated=is_gated)
    except (triton.CompilationError, TypeError, AttributeError) as error:
        logger.warning(_NO_HOPPER, error)
        hopper = None  # type: ignore[assignment]
        return False
    return True
