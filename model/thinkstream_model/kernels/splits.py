"""The splits of a decoded row's keys: where their results wait, and how they become one.

A row of a single split is done with it. Of several, each leaves its result in memory, to be merged in
order: by whichever program comes last where there are few, else by a kernel of its own.

B sequences, H query heads, J key heads, G query heads per key head, C width of a head, Q = H * C,
R rows of a program, X results that wait.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model import step_sizes

from .launch import is_dependent, launch_options
from .running_softmax import SPLIT_KEYS, mean, merge, new_result

_MERGED_BY_LAST = 4  # measured on an H100: with more splits a second launch is quicker


class Partials(NamedTuple):
    """Room for the results of splits.

    Attributes:
        out_XC: float32, weighted sums of values, [X * C]; empty where no row can have two splits.
        top_X: float32, largest scores.
        sum_X: float32, sums of weights.
        arrivals_X: int32 zeros, B * J or more, where the last program is to merge; else None.
        max_splits: Of the longest row.
    """

    out_XC: Tensor
    top_X: Tensor
    sum_X: Tensor
    arrivals_X: Tensor | None
    max_splits: int

    @classmethod
    def for_rows(cls, out_BQ: Tensor, width: int, max_context: int, arrivals_X: Tensor | None) -> Partials:
        """Make room for rows of up to ``max_context`` keys, whose results go to ``out_BQ``."""
        max_splits = num_splits(max_context)
        num_partials = out_BQ.numel() // width * max_splits if max_splits > 1 else 0
        out_XC = torch.empty(num_partials * width, dtype=torch.float32, device=out_BQ.device)
        top_X, sum_X = torch.empty((2, num_partials), dtype=torch.float32, device=out_BQ.device)
        is_merged_by_last = max_splits <= _MERGED_BY_LAST
        return cls(out_XC, top_X, sum_X, arrivals_X if is_merged_by_last else None, max_splits)

    def merge(self, out_BQ: Tensor, context_lens_B: Tensor, *, kv_heads: int, group: int, width: int) -> None:
        """Merge what no program has merged."""
        if self.max_splits == 1 or self.arrivals_X is not None:
            return
        _merge_kernel[(out_BQ.numel() // width,)](
            self.out_XC, self.top_X, self.sum_X, context_lens_B, out_BQ, self.max_splits,
            KV_HEADS=kv_heads, GROUP=group, WIDTH=width, AHEAD=8, DEPENDENT=is_dependent(out_BQ.device),
            num_warps=1, enable_fp_fusion=False, **launch_options(out_BQ.device),
        )  # fmt: skip


def num_splits(num_keys: int) -> int:
    """How many splits so many keys have, one at least."""
    return max(1, -(-num_keys // step_sizes.SPLIT_KEYS))


@triton.jit
def settle(
    found: tl.tuple,
    split_index: tl.tensor,
    num_splits: tl.tensor,
    row_head: tl.tensor,
    member_R: tl.tensor,
    out: tl.tensor,
    partials: tl.tuple,
    max_splits: tl.tensor,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    MERGED_BY_LAST: tl.constexpr,
) -> None:
    """Bring what a split found to where it belongs; ``partials`` are the room's first four."""
    column_C = tl.arange(0, WIDTH)
    is_member_R = member_R < GROUP
    offset_RC = (row_head * GROUP + member_R)[:, None] * WIDTH + column_C[None, :]
    partial_out, partial_top, partial_sum, arrivals = partials
    if num_splits == 1:
        mean_RC = mean(merge(new_result(ROWS, WIDTH), found))
        tl.store(out + offset_RC, mean_RC.to(out.dtype.element_ty), mask=is_member_R[:, None])
    else:
        top_R, sum_R, out_RC = found
        first_partial = row_head * max_splits
        place_R = (first_partial + split_index) * GROUP + member_R
        place_RC = place_R[:, None] * WIDTH + column_C[None, :]
        tl.store(partial_top + place_R, top_R, mask=is_member_R)
        tl.store(partial_sum + place_R, sum_R, mask=is_member_R)
        tl.store(partial_out + place_RC, out_RC, mask=is_member_R[:, None])
        if MERGED_BY_LAST:
            tl.debug_barrier()  # all of the program's stores come before its arrival
            if tl.atomic_add(arrivals + row_head, 1, sem="acq_rel") == num_splits - 1:
                mean_RC = _merged(
                    partial_out, partial_top, partial_sum, first_partial, num_splits, member_R,
                    ROWS, GROUP, WIDTH, AHEAD=1,
                )  # fmt: skip
                tl.store(out + offset_RC, mean_RC.to(out.dtype.element_ty), mask=is_member_R[:, None])
                tl.store(arrivals + row_head, 0)


@triton.jit
def _merged(
    partial_out: tl.tensor,
    partial_top: tl.tensor,
    partial_sum: tl.tensor,
    first_partial: tl.tensor,
    num_splits: tl.tensor,
    member_R: tl.tensor,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    AHEAD: tl.constexpr,
) -> tl.tensor:
    """The mean over a row's splits, merged in order; ``AHEAD`` of them are loaded at once."""
    column_C = tl.arange(0, WIDTH)
    result = new_result(ROWS, WIDTH)
    for first in tl.range(0, num_splits, AHEAD, num_stages=1):
        for i in tl.static_range(AHEAD):
            is_there_R = (member_R < GROUP) & (first + i < num_splits)  # what is not there changes nothing
            place_R = (first_partial + first + i) * GROUP + member_R
            place_RC = place_R[:, None] * WIDTH + column_C[None, :]
            # Other programs wrote these, so they come from the cache that all share.
            top_R = tl.load(partial_top + place_R, is_there_R, other=float("-inf"), cache_modifier=".cg")
            sum_R = tl.load(partial_sum + place_R, is_there_R, other=0.0, cache_modifier=".cg")
            out_RC = tl.load(partial_out + place_RC, is_there_R[:, None], other=0.0, cache_modifier=".cg")
            result = merge(result, (top_R, sum_R, out_RC))
    return mean(result)


@triton.jit(
    do_not_specialize=("max_splits",),
    do_not_specialize_on_alignment=("context_lens", "partial_top", "partial_sum"),
)
def _merge_kernel(
    partial_out: tl.tensor,
    partial_top: tl.tensor,
    partial_sum: tl.tensor,
    context_lens: tl.tensor,
    out: tl.tensor,
    max_splits: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    AHEAD: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """All splits of one row and one query head."""
    row_member = tl.program_id(0).to(tl.int64)
    row_head = row_member // GROUP
    num_splits = tl.cdiv(tl.load(context_lens + row_head // KV_HEADS), SPLIT_KEYS)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    if num_splits > 1:
        member_R = row_member % GROUP + tl.arange(0, 1)
        mean_RC = _merged(
            partial_out, partial_top, partial_sum, row_head * max_splits, num_splits, member_R,
            1, GROUP, WIDTH, AHEAD,
        )  # fmt: skip
        offset_RC = (row_head * GROUP + member_R)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        tl.store(out + offset_RC, mean_RC.to(out.dtype.element_ty))
