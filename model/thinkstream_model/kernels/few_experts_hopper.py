"""The experts of a few rows on Hopper, in the manner of ``few_rows_hopper`` and without lists.

A program is a pair's and some channels', and has work to do only if no pair before has the same expert; it
then does all of that expert's pairs. Which experts are wanted the second product knows before it waits.

T rows, E experts, K experts a row, I inner width, D width, P = T * K pairs, R rows of a tile.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention_warps import block_barrier
from .few_rows_hopper import (
    CHANNELS,
    COLUMNS,
    DEPTH,
    MAX_DEPTH,
    PANELS,
    ROWS,
    are_copied,
    copy_rows,
    described,
    fetch,
    is_whole,
    multiply_tiles,
)
from .launch import is_dependent, launch_options
from .tiles import power_of_2

_STAGES = 4
"""Tiles in flight: with so many, two programs fit on a processor."""


@gluon.jit
def _pairs_of(
    slots: gl.tensor, own: gl.tensor, num_rows: gl.tensor, TOP_K: gl.constexpr, ALL_K: gl.constexpr
) -> tuple[gl.tensor, gl.tensor, gl.tensor]:
    """The expert of a pair, the first pair that has it, and each row's pair that has it, [R], -1 for none."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [4, 8], [4, 1], [1, 0])
    row_R1 = gl.expand_dims(gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout)), 1)
    k_1K = gl.expand_dims(gl.arange(0, ALL_K, layout=gl.SliceLayout(0, layout)), 0)
    pair_RK = row_R1 * TOP_K + k_1K
    is_pair_RK = (row_R1 < num_rows) & (k_1K < TOP_K)
    # From the cache that all processors share: one's own may, before the wait, hold what stood there before.
    expert = gl.load(slots + own, cache_modifier=".cg").to(gl.int32)
    slot_RK = gl.load(slots + pair_RK, mask=is_pair_RK, other=-1, cache_modifier=".cg").to(gl.int32)
    is_its_RK = is_pair_RK & (slot_RK == expert)
    first = gl.min(gl.min(gl.where(is_its_RK, pair_RK, ROWS * TOP_K), 1), 0)
    return expert, first, gl.max(gl.where(is_its_RK, pair_RK, -1), 1)


@gluon.jit(do_not_specialize=("num_rows",))
def _gate_up_kernel(
    weights: gl.tensor,
    rows: gl.tensor,
    slots: gl.tensor,
    inner: gl.tensor,
    num_rows: gl.tensor,
    NUM_SLOTS: gl.constexpr,
    WIDTH: gl.constexpr,
    INNER: gl.constexpr,
    TOP_K: gl.constexpr,
    ALL_K: gl.constexpr,
    STAGES: gl.constexpr,
    DEPENDENT: gl.constexpr,
) -> None:
    """Gate and up of some channels of one pair's expert, for all its pairs; only the first has work to do.

    All rows are multiplied, for it costs nothing, and those kept that are the expert's.
    """
    EACH: gl.constexpr = CHANNELS // 2
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    pages = gl.allocate_shared_memory(gl.bfloat16, [STAGES * PANELS * 2, EACH, COLUMNS], layout)
    hidden = gl.allocate_shared_memory(gl.bfloat16, [WIDTH // DEPTH, ROWS, DEPTH], layout)
    barriers = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES + 1):
        mbarrier.init(barriers.index(stage), count=1)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    own = gl.program_id(1)
    expert, first, pair_R = _pairs_of(slots, own, num_rows, TOP_K, ALL_K)
    if (first == own) & (expert >= 0) & (expert < NUM_SLOTS):
        channel = gl.program_id(0) * EACH
        gate = expert * (2 * INNER) + channel
        for stage in gl.static_range(STAGES):
            fetch(weights, pages, barriers, stage, gate, INNER, stage * DEPTH, True, 2)
        copy_rows(rows, 0, hidden, barriers.index(STAGES), WIDTH)
        total = multiply_tiles(weights, pages, barriers, hidden, gate, INNER, 0, 2, STAGES, WIDTH // DEPTH)
        both_layout: gl.constexpr = gl.BlockedLayout([1, 1, 2], [32, 1, 1], [1, 4, 1], [2, 0, 1])
        each_layout: gl.constexpr = gl.SliceLayout(2, both_layout)
        both = gl.permute(gl.reshape(total, [2, EACH, ROWS]), (1, 2, 0))
        gates, ups = gl.split(gl.convert_layout(both, both_layout))
        gated = gl.convert_layout(gates / (1.0 + gl.exp(-gates)) * ups, each_layout)
        pair_1R = gl.expand_dims(gl.convert_layout(pair_R, gl.SliceLayout(0, each_layout)), 0)
        channels = channel + gl.arange(0, EACH, layout=gl.SliceLayout(1, each_layout))
        places = inner + pair_1R * INNER + gl.expand_dims(channels, 1)
        gl.store(places, gated.to(gl.bfloat16), mask=pair_1R >= 0)


@gluon.jit
def _gather(inner: gl.tensor, hidden: gl.tensor, pair_R: gl.tensor, INNER: gl.constexpr) -> None:
    """Bring the rows of some pairs into shared memory, zeros where there is none."""
    STEPS: gl.constexpr = INNER // DEPTH
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    pair_R1 = gl.expand_dims(gl.convert_layout(pair_R, gl.SliceLayout(1, layout)), 1)
    column_1D = gl.expand_dims(gl.arange(0, DEPTH, layout=gl.SliceLayout(0, layout)), 0)
    places = inner + gl.maximum(pair_R1, 0) * INNER + column_1D
    values = ()
    for step in gl.static_range(STEPS):
        value = gl.load(places + step * DEPTH, mask=pair_R1 >= 0, other=0.0)
        values = values + (value,)  # type: ignore[assignment] # noqa: RUF005
    for step in gl.static_range(STEPS):
        hidden.index(step).store(values[step])
    fence_async_shared()
    block_barrier()


@gluon.jit(do_not_specialize=("num_rows",))
def _down_kernel(
    weights: gl.tensor,
    inner: gl.tensor,
    slots: gl.tensor,
    outputs: gl.tensor,
    num_rows: gl.tensor,
    NUM_SLOTS: gl.constexpr,
    WIDTH: gl.constexpr,
    INNER: gl.constexpr,
    TOP_K: gl.constexpr,
    ALL_K: gl.constexpr,
    STAGES: gl.constexpr,
    DEPENDENT: gl.constexpr,
) -> None:
    """Down of some channels of one pair's expert, for all its pairs; only the first has work to do."""
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    pages = gl.allocate_shared_memory(gl.bfloat16, [STAGES * PANELS, CHANNELS, COLUMNS], layout)
    hidden = gl.allocate_shared_memory(gl.bfloat16, [INNER // DEPTH, ROWS, DEPTH], layout)
    barriers = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(barriers.index(stage), count=1)
    own = gl.program_id(1)
    # Before the wait: what the slots came from ran before ``gate_up``, and is complete, for that kernel
    # waited for it before it let this one start.
    expert, first, pair_R = _pairs_of(slots, own, num_rows, TOP_K, ALL_K)
    has_work = (first == own) & (expert >= 0) & (expert < NUM_SLOTS)
    channel = gl.program_id(0) * CHANNELS
    row = expert * WIDTH + channel
    if has_work:
        for stage in gl.static_range(STAGES):
            fetch(weights, pages, barriers, stage, row, 0, stage * DEPTH, True, 1)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    if has_work:
        _gather(inner, hidden, pair_R, INNER)
        total = multiply_tiles(weights, pages, barriers, hidden, row, 0, 0, 1, STAGES, INNER // DEPTH)
        pair_1R = gl.expand_dims(gl.convert_layout(pair_R, gl.SliceLayout(0, total.type.layout)), 0)
        channels = channel + gl.arange(0, CHANNELS, layout=gl.SliceLayout(1, total.type.layout))
        places = outputs + pair_1R * WIDTH + gl.expand_dims(channels, 1)
        gl.store(places, total.to(gl.bfloat16), mask=pair_1R >= 0)


def is_suited(hidden_TD: Tensor, slots_TK: Tensor, gate_up_E2ID: Tensor, down_EDI: Tensor) -> bool:
    """Whether ``experts`` does these."""
    _, width, inner = down_EDI.shape
    is_shape = is_whole(width) and inner % DEPTH.value == 0 and inner <= MAX_DEPTH
    return is_shape and slots_TK.is_contiguous() and are_copied(hidden_TD, gate_up_E2ID, down_EDI)


def experts(
    hidden_TD: Tensor, slots_TK: Tensor, gate_up_E2ID: Tensor, down_EDI: Tensor, outputs_TKD: Tensor
) -> None:
    """Send each row through its experts, into ``outputs_TKD``; what has no slot is left as it is.

    The slots are read before the second kernel waits for the first, and so must not be the first's work.
    """
    (num_rows, top_k), (num_slots, width, inner) = slots_TK.shape, down_EDI.shape
    inner_PI = hidden_TD.new_empty(num_rows * top_k, inner)
    shape = {"NUM_SLOTS": num_slots, "WIDTH": width, "INNER": inner, "TOP_K": top_k}
    options = {"ALL_K": power_of_2(top_k), "DEPENDENT": is_dependent(hidden_TD.device)}
    options |= {"num_warps": 4, **launch_options(hidden_TD.device)}
    _gate_up_kernel[(inner * 2 // CHANNELS.value, num_rows * top_k)](
        described(gate_up_E2ID, CHANNELS.value // 2, COLUMNS.value), described(hidden_TD, ROWS.value, width),
        slots_TK, inner_PI, num_rows, STAGES=min(_STAGES, width // DEPTH.value), **shape, **options,
    )  # fmt: skip
    _down_kernel[(width // CHANNELS.value, num_rows * top_k)](
        described(down_EDI, CHANNELS.value, COLUMNS.value), inner_PI,
        slots_TK, outputs_TKD, num_rows, STAGES=min(_STAGES, inner // DEPTH.value), **shape, **options,
    )  # fmt: skip
