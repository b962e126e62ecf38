"""Hands products of many rows to Hopper's own kernel, where it has one that this Triton can compile.

``experts`` and ``dense`` ask here before they launch their own, which give the same bits everywhere.
"""

from __future__ import annotations

from torch import Tensor

from thinkstream_model.ops import ExpertLists

from .optional_gluon import OptionalGluon

_MIN_ROWS = 1_024
"""From so many rows of a step on Hopper's kernel is the faster one, as measured on an H100."""

_MIN_ROWS_OF_MANY_OUTPUTS, _MANY_OUTPUTS = 65, 65_536
"""A vocabulary's outputs give every processor work enough with fewer rows."""

hopper_kernels = OptionalGluon(
    "products of many rows",
    "prompts take a fourteenth longer, and the logits of more than 64 decodes up to a quarter",
)
with hopper_kernels.importing():
    from . import many_rows_hopper


def are_many(num_rows: int, num_outputs: int) -> bool:
    """Whether a step's rows are so many for a product that Hopper's kernel is the faster one."""
    return num_rows >= (_MIN_ROWS_OF_MANY_OUTPUTS if num_outputs >= _MANY_OUTPUTS else _MIN_ROWS)


def try_multiply(
    rows: Tensor,
    weights: Tensor,
    out: Tensor,
    lists: ExpertLists | None = None,
    *,
    num_parts: int = 1,
    pairs_each: int = 1,
    is_gated: bool = False,
) -> bool:
    """Let Hopper's kernel multiply, if it can.

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
    if not hopper_kernels.is_usable or not many_rows_hopper.is_suited(rows, weights, out, num_parts):
        return False
    if lists is None:
        return hopper_kernels.try_launch(
            many_rows_hopper.multiply_all, rows, weights, out, num_parts=num_parts
        )
    return hopper_kernels.try_launch(
        many_rows_hopper.multiply_listed, rows, weights, lists, out, pairs_each=pairs_each, is_gated=is_gated
    )
