"""The experts' products over lists of pairs: each expert's weights are read once for all its rows.

A program takes an expert and some of its channels and goes through the expert's rows; the weights are the
tensor cores' left operand, whose 64 rows they always fill, while an expert's rows are few. Lists come in
any order and any length: a row of a tile knows nothing of its place. Rows are written in the order of
pairs, so that nothing has to be sorted back. Hopper has kernels of its own for few rows, which need no
lists, and for many.

T rows, D width, E experts, K experts a row, I inner width, P = T * K pairs, L pairs of one expert at most.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.ops import ExpertLists

from . import few_rows
from .launch import dot_precision, is_dependent, launch_options
from .many_rows import are_many, try_multiply
from .router import lists_of
from .tiles import Tile, dot_rows, fitted, num_tiles


@triton.jit(do_not_specialize=("list_length",))
def _gate_up_kernel(
    hidden: tl.tensor,
    gate_up: tl.tensor,
    counts: tl.tensor,
    pairs: tl.tensor,
    inner: tl.tensor,
    hidden_stride: tl.tensor,
    list_length: tl.tensor,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Gate and up of some channels of one expert, and ``silu(gate) * up``, rounded once."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    count = tl.load(counts + expert)
    gate_rows = gate_up + (2 * INNER * expert + tl.minimum(channels, INNER - 1)) * WIDTH
    for start in range(tl.program_id(0) * BLOCK_ROWS, count, tl.num_programs(0) * BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        pair = tl.load(pairs + expert * list_length + tl.minimum(rows, count - 1)).to(tl.int64)
        hidden_rows = hidden + (pair // TOP_K) * hidden_stride
        gate, up = _dot_two(gate_rows, gate_rows + INNER * WIDTH, hidden_rows,
                            WIDTH, BLOCK_CHANNELS, BLOCK_ROWS, BLOCK_K, PRECISION, STAGES)  # fmt: skip
        gated = gate / (1.0 + tl.exp(-gate)) * up
        inside = (rows < count)[None, :]
        if INNER % BLOCK_CHANNELS != 0:
            inside &= (channels < INNER)[:, None]
        places = inner + pair[None, :] * INNER + channels[:, None]
        tl.store(places, gated.to(inner.dtype.element_ty), mask=inside)


@triton.jit
def _dot_two(
    first_rows: tl.tensor,
    second_rows: tl.tensor,
    right_rows: tl.tensor,
    DEPTH: tl.constexpr,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """``dot_rows`` of two left operands with one on the right, which is read once."""
    ks = tl.arange(0, BLOCK_K)
    first_total = tl.zeros((BLOCK_LEFT, BLOCK_RIGHT), tl.float32)
    second_total = tl.zeros((BLOCK_LEFT, BLOCK_RIGHT), tl.float32)
    for k in tl.range(0, DEPTH, BLOCK_K, num_stages=STAGES):
        columns = (k + ks)[None, :]
        if DEPTH % BLOCK_K == 0:
            first = tl.load(first_rows[:, None] + columns)
            second = tl.load(second_rows[:, None] + columns)
            right = tl.load(right_rows[:, None] + columns)
        else:
            first = tl.load(first_rows[:, None] + columns, mask=columns < DEPTH, other=0.0)
            second = tl.load(second_rows[:, None] + columns, mask=columns < DEPTH, other=0.0)
            right = tl.load(right_rows[:, None] + columns, mask=columns < DEPTH, other=0.0)
        right = tl.trans(right)
        first_total = tl.dot(first, right, first_total, input_precision=PRECISION)
        second_total = tl.dot(second, right, second_total, input_precision=PRECISION)
    return first_total, second_total


@triton.jit(do_not_specialize=("list_length",))
def _down_kernel(
    inner: tl.tensor,
    down: tl.tensor,
    counts: tl.tensor,
    pairs: tl.tensor,
    outputs: tl.tensor,
    list_length: tl.tensor,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Down of some channels of one expert."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    count = tl.load(counts + expert)
    down_rows = down + (WIDTH * expert + tl.minimum(channels, WIDTH - 1)) * INNER
    for start in range(tl.program_id(0) * BLOCK_ROWS, count, tl.num_programs(0) * BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        pair = tl.load(pairs + expert * list_length + tl.minimum(rows, count - 1)).to(tl.int64)
        total = dot_rows(down_rows, inner + pair * INNER, INNER,
                         BLOCK_CHANNELS, BLOCK_ROWS, BLOCK_K, INNER % BLOCK_K == 0,
                         PRECISION, STAGES)  # fmt: skip
        inside = (rows < count)[None, :]
        if WIDTH % BLOCK_CHANNELS != 0:
            inside &= (channels < WIDTH)[:, None]
        places = outputs + pair[None, :] * WIDTH + channels[:, None]
        tl.store(places, total.to(outputs.dtype.element_ty), mask=inside)


def needs_lists(hidden_TD: Tensor) -> bool:
    """Whether ``experts`` is best given lists, for so many rows of this kind."""
    return not few_rows.are_few(hidden_TD)


def experts(
    hidden_TD: Tensor,
    slots_TK: Tensor,
    gate_up_E2ID: Tensor,
    down_EDI: Tensor,
    lists: ExpertLists | None = None,
) -> Tensor:
    """Send each row through its experts; the weights must not be written by the launch before this one.

    Args:
        hidden_TD: The rows.
        slots_TK: int32, each row's experts; what is not in [0, E) is none.
        gate_up_E2ID: Per expert, gate over up.
        down_EDI: Per expert, down.
        lists: Which pairs each expert gets, if they are made already.

    Returns:
        The outputs, not yet weighted, [T, K, D]. What has no expert is left undefined.
    """
    outputs_TKD = few_rows.try_experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI)
    if outputs_TKD is not None:
        return outputs_TKD
    if lists is None:
        lists = lists_of(slots_TK, gate_up_E2ID.shape[0])
    top_k = slots_TK.shape[1]
    return down(gate_up(hidden_TD, gate_up_E2ID, lists, top_k), down_EDI, lists, top_k)


def gate_up(hidden_TD: Tensor, gate_up_E2ID: Tensor, lists: ExpertLists, top_k: int) -> Tensor:
    """Send each row through the first half of its experts.

    Args:
        hidden_TD: The rows.
        gate_up_E2ID: Per expert, gate over up.
        lists: Which pairs each expert gets.
        top_k: Pairs of a row.

    Returns:
        ``silu(gate) * up`` per pair, [P, I]. What is in no list is left undefined.
    """
    assert hidden_TD.stride(1) == 1 and gate_up_E2ID.is_contiguous()
    (num_rows, width), (num_experts, twice_inner, _) = hidden_TD.shape, gate_up_E2ID.shape
    num_pairs, inner, device = num_rows * top_k, twice_inner // 2, hidden_TD.device
    inner_PI = hidden_TD.new_empty(num_pairs, inner)
    operands = (hidden_TD, gate_up_E2ID, inner_PI, lists)
    if are_many(num_rows, twice_inner) and try_multiply(*operands, pairs_each=top_k, is_gated=True):
        return inner_PI
    tile = fitted(_gate_up_tile(num_rows), hidden_TD.dtype)
    _gate_up_kernel[_grid(num_rows, num_pairs, inner, num_experts, tile)](
        hidden_TD, gate_up_E2ID, lists.counts_E, lists.pairs_EL, inner_PI,
        hidden_TD.stride(0), lists.pairs_EL.shape[1], WIDTH=width, INNER=inner, TOP_K=top_k,
        BLOCK_ROWS=tile.rows, BLOCK_CHANNELS=tile.channels, BLOCK_K=tile.depth,
        PRECISION=dot_precision(hidden_TD.dtype), STAGES=tile.num_stages,
        DEPENDENT=is_dependent(device), num_warps=tile.num_warps, **launch_options(device),
    )  # fmt: skip
    return inner_PI


def gate_up_reference(hidden_TD: Tensor, gate_up_E2ID: Tensor, lists: ExpertLists, top_k: int) -> Tensor:
    """``gate_up`` in plain torch; zeros for what is in no list."""
    inner_PI = hidden_TD.new_zeros(hidden_TD.shape[0] * top_k, gate_up_E2ID.shape[1] // 2)
    for gate_up_2ID, pairs in zip(gate_up_E2ID, _listed(lists), strict=True):
        gate, up = (hidden_TD[pairs // top_k].float() @ gate_up_2ID.float().t()).chunk(2, -1)
        inner_PI[pairs] = (torch.nn.functional.silu(gate) * up).to(inner_PI.dtype)
    return inner_PI


def down(inner_PI: Tensor, down_EDI: Tensor, lists: ExpertLists, top_k: int) -> Tensor:
    """Send each pair through the second half of its expert.

    Args:
        inner_PI: What ``gate_up`` gave.
        down_EDI: Per expert, down.
        lists: Which pairs each expert gets.
        top_k: Pairs of a row.

    Returns:
        The outputs, not yet weighted, [T, K, D]. What is in no list is left undefined.
    """
    assert inner_PI.is_contiguous() and down_EDI.is_contiguous()
    num_pairs, (num_experts, width, inner) = inner_PI.shape[0], down_EDI.shape
    num_rows, device = num_pairs // top_k, inner_PI.device
    outputs_TKD = inner_PI.new_empty(num_rows, top_k, width)
    operands = (inner_PI, down_EDI, outputs_TKD.flatten(0, 1), lists)
    if are_many(num_rows, width) and try_multiply(*operands):
        return outputs_TKD
    tile = fitted(_down_tile(num_rows), inner_PI.dtype)
    _down_kernel[_grid(num_rows, num_pairs, width, num_experts, tile)](
        inner_PI, down_EDI, lists.counts_E, lists.pairs_EL, outputs_TKD,
        lists.pairs_EL.shape[1], WIDTH=width, INNER=inner,
        BLOCK_ROWS=tile.rows, BLOCK_CHANNELS=tile.channels, BLOCK_K=tile.depth,
        PRECISION=dot_precision(inner_PI.dtype), STAGES=tile.num_stages,
        DEPENDENT=is_dependent(device), num_warps=tile.num_warps, **launch_options(device),
    )  # fmt: skip
    return outputs_TKD


def down_reference(inner_PI: Tensor, down_EDI: Tensor, lists: ExpertLists, top_k: int) -> Tensor:
    """``down`` in plain torch; zeros for what is in no list."""
    outputs_PD = inner_PI.new_zeros(inner_PI.shape[0], down_EDI.shape[1])
    for down_DI, pairs in zip(down_EDI, _listed(lists), strict=True):
        outputs_PD[pairs] = (inner_PI[pairs].float() @ down_DI.float().t()).to(outputs_PD.dtype)
    return outputs_PD.view(-1, top_k, outputs_PD.shape[1])


def _listed(lists: ExpertLists) -> list[Tensor]:
    return [
        pairs_L[: int(count)].long() for pairs_L, count in zip(lists.pairs_EL, lists.counts_E, strict=True)
    ]


def _grid(num_rows: int, num_pairs: int, num_channels: int, num_experts: int, tile: Tile) -> tuple[int, ...]:
    """Blocks of rows, tiles of channels, experts; the first varies fastest.

    Programs that share weights so run at the same time and read them from the L2 cache. How long a list is
    no host knows: twice the mean number of blocks evens out most of a skew, and programs loop over the rest.
    """
    num_blocks = max(1, min(num_tiles(num_rows, tile.rows), 2 * num_pairs // (num_experts * tile.rows)))
    return num_blocks, num_tiles(num_channels, tile.channels), num_experts


def _gate_up_tile(num_rows: int) -> Tile:
    """As measured on an H100: 96 to 98% of the weights' bandwidth, 500 TFLOP/s where rows are many."""
    if num_rows <= 64:
        return Tile(16, 64, 128, num_warps=4, num_stages=4 if num_rows <= 16 else 3)
    if num_rows <= 128:
        return Tile(32, 64, 128, num_warps=4, num_stages=3)
    if num_rows <= 512:
        return Tile(64, 64, 128, num_warps=4, num_stages=2)
    return Tile(128, 128, 64, num_warps=8, num_stages=4)


def _down_tile(num_rows: int) -> Tile:
    """As measured on an H100: 91 to 97% of the weights' bandwidth, 420 TFLOP/s where rows are many."""
    if num_rows <= 128:
        return Tile(16, 64, 128, num_warps=4, num_stages=4)
    if num_rows <= 256:
        return Tile(32, 64, 128, num_warps=4, num_stages=4)
    if num_rows <= 512:
        return Tile(64, 64, 128, num_warps=4, num_stages=3)
    return Tile(128, 256, 64, num_warps=8, num_stages=3)
