"""Where top-p's threshold lies in a whole row, and the few values that lie there.

Many programs share a row. One reading weighs what is at or above each of a few thresholds
(``nucleus_weighing.py``), and another gathers what is between the two that the one sought lies between;
``threshold.py`` searches among these. Where they are too many, as in a row of equal values, it must search
the row itself.

B rows, V vocabulary, C chunks of it, N ids of a chunk, H thresholds, S slots for what a chunk's ids brought,
K blocks of slots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.sampler import SamplingInputs

from .float_search import key_of, largest_key
from .launch import is_dependent, launch_options
from .nucleus_weighing import NUM_THRESHOLDS, bracket, is_nucleus, weigh_chunks
from .tiles import power_of_2

_NUM_PROGRAMS = 1024
"""Of all rows together. With two and four times as many, 256 rows took 3 and 6 % longer on an H100."""
_MIN_PROGRAMS_OF_ROW = 4
"""However many rows there are: one that alone has top-p must not wait for a lone program."""
_NUM_SLOTS = tl.constexpr(512)
"""Of a chunk of 2,048 ids. Of normal logits with a deviation of 1, an interval holds less than an eighth at
temperature 1 and a top-p of 0.999."""
_SLOTS_PER_BLOCK = tl.constexpr(128)
"""A block without a value is not read; it is a group of a search (``float_search.py``)."""


class Gathered(NamedTuple):
    """Of each row with top-p alone, the values between two thresholds that the one sought lies between.

    Attributes:
        bracket_B3: float32; the lower, the higher, and the mass that must come from between them.
        counts_BC: int32, how many values each chunk has there, be there slots for them or not.
        values_BCS: float32, these; what is no number fills the last block that has any.
    """

    bracket_B3: Tensor
    counts_BC: Tensor
    values_BCS: Tensor


def gather_nucleus(
    logits_BV: Tensor,
    inputs: SamplingInputs,
    peaks_BC: Tensor,
    masses_BC: Tensor,
    *,
    num_valid_ids: int,
    chunk_ids: int,
) -> Gathered:
    """Gather what can be top-p's threshold. Rows without top-p, or with a top-k, get nothing.

    Args:
        logits_BV: float32; each row is contiguous.
        inputs: How to sample each row.
        peaks_BC: float32, the largest logit of each chunk.
        masses_BC: float32, the chunk's mass relative to it.
        num_valid_ids: Ids from here on do not count.
        chunk_ids: Ids of a chunk.
    """
    (num_rows, num_chunks), device = peaks_BC.shape, logits_BV.device
    spacing_B4, bracket_B3 = peaks_BC.new_empty(num_rows, 4), peaks_BC.new_empty(num_rows, 3)
    masses_BCH = peaks_BC.new_empty(num_rows, num_chunks, NUM_THRESHOLDS.value)
    counts_BC = torch.empty_like(peaks_BC, dtype=torch.int32)
    values_BCS = peaks_BC.new_empty(num_rows, num_chunks, _NUM_SLOTS.value)
    gathered = Gathered(bracket_B3, counts_BC, values_BCS)
    if 0 < inputs.max_top_k < num_valid_ids:
        return gathered
    grid = (num_rows, programs_of_row(num_rows, num_chunks))
    rows = (logits_BV, inputs.temperature_B, inputs.top_p_B, inputs.top_k_B, peaks_BC)
    sizes = (logits_BV.stride(0), num_valid_ids, num_chunks)
    options: dict[str, Any] = dict(
        CHUNKS=power_of_2(num_chunks), CHUNK=chunk_ids, DEPENDENT=is_dependent(device), num_warps=4,
        **launch_options(device),
    )  # fmt: skip
    weigh_chunks[grid](*rows, masses_BC, spacing_B4, masses_BCH, *sizes, **options)
    _gather_chunks[grid](*rows, spacing_B4, masses_BCH, *gathered, *sizes, **options)
    return gathered


def programs_of_row(num_rows: int, num_chunks: int) -> int:
    """How many programs share a row: enough to fill a device, and few where there is nothing to do."""
    return min(num_chunks, max(_MIN_PROGRAMS_OF_ROW, _NUM_PROGRAMS // num_rows))


@triton.jit
def _gather_chunks(
    logits_BV: tl.tensor,
    temperature_B: tl.tensor,
    top_p_B: tl.tensor,
    top_k_B: tl.tensor,
    peaks_BC: tl.tensor,
    spacing_B4: tl.tensor,
    masses_BCH: tl.tensor,
    bracket_B3: tl.tensor,
    counts_BC: tl.tensor,
    values_BCS: tl.tensor,
    row_stride: tl.tensor,
    num_valid_ids: tl.tensor,
    num_chunks: tl.tensor,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Gather the values between the last threshold with the mass wanted and the next."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    temperature, top_p = tl.load(temperature_B + row), tl.load(top_p_B + row)
    if is_nucleus(temperature, top_p, tl.load(top_k_B + row), num_valid_ids):
        first_chunk = row * num_chunks
        masses_row = masses_BCH + first_chunk * NUM_THRESHOLDS
        low, high, wanted = bracket(spacing_B4 + row * 4, masses_row, num_chunks, CHUNKS)
        if tl.program_id(1) == 0:
            tl.store(bracket_B3 + row * 3, low)
            tl.store(bracket_B3 + row * 3 + 1, high)
            tl.store(bracket_B3 + row * 3 + 2, wanted)
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            count = tl.zeros((), tl.int32)
            if tl.load(peaks_BC + first_chunk + chunk) >= low:
                ids_N = chunk * CHUNK + tl.arange(0, CHUNK)
                logits_N = tl.load(
                    logits_BV + row * row_stride + ids_N, mask=ids_N < num_valid_ids, other=float("nan")
                )
                is_between_N = (logits_N >= low) & (logits_N < high)
                ends_N = tl.cumsum(is_between_N.to(tl.int32), axis=0)
                count = tl.max(ends_N, axis=0)
                values_S = values_BCS + (first_chunk + chunk) * _NUM_SLOTS
                tl.store(values_S + ends_N - 1, logits_N, mask=is_between_N & (ends_N <= _NUM_SLOTS))
                rest = count + tl.arange(0, _SLOTS_PER_BLOCK)
                is_rest = (rest < _filled(count)) & (rest < _NUM_SLOTS)
                tl.store(values_S + rest, tl.full(rest.shape, float("nan"), tl.float32), mask=is_rest)
            tl.store(counts_BC + first_chunk + chunk, count)


@triton.jit
def _filled(count: tl.tensor) -> tl.tensor:
    """The slots of whole blocks that so many values take."""
    return tl.cdiv(count, _SLOTS_PER_BLOCK) * _SLOTS_PER_BLOCK


@triton.jit
def gathered_key(
    gathered: tl.tuple,
    groups_row: tl.tensor,
    scale: tl.tuple,
    row: tl.tensor,
    num_chunks: tl.tensor,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Key of the threshold, and whether what was gathered has it; if not, no block was listed.

    The list takes the place of that of the row's groups, of ``GROUP`` ids each.
    """
    # A chunk has no more values than ids, and so fills no more blocks than it has groups.
    tl.static_assert(_SLOTS_PER_BLOCK >= GROUP, "blocks of slots would not fit into the list of groups")
    bracket_B3, counts_BC, values_BCS = gathered
    highest, _ = scale
    low, high = tl.load(bracket_B3 + row * 3), tl.load(bracket_B3 + row * 3 + 1)
    wanted, counts_row = tl.load(bracket_B3 + row * 3 + 2), counts_BC + row * num_chunks
    chunks_C = tl.arange(0, CHUNKS)
    counts_C = tl.load(counts_row + chunks_C, mask=chunks_C < num_chunks, other=0)
    is_found = (tl.max(counts_C, axis=0) <= _NUM_SLOTS) & (low > float("-inf")) & (low < float("inf"))
    key = key_of(low)
    if is_found:
        BLOCKS_OF_CHUNK: tl.constexpr = _NUM_SLOTS // _SLOTS_PER_BLOCK
        blocks_K = tl.arange(0, CHUNKS * BLOCKS_OF_CHUNK)
        chunks_K = blocks_K // BLOCKS_OF_CHUNK
        counts_K = tl.load(counts_row + chunks_K, mask=chunks_K < num_chunks, other=0)
        is_filled_K = counts_K > blocks_K % BLOCKS_OF_CHUNK * _SLOTS_PER_BLOCK
        ends_K = tl.cumsum(is_filled_K.to(tl.int32), axis=0)
        tl.store(groups_row + ends_K - 1, blocks_K, mask=is_filled_K)
        tl.debug_barrier()  # other threads of the program read what was stored
        num_slots = num_chunks * _NUM_SLOTS
        values = (values_BCS + row * num_slots, groups_row, tl.max(ends_K, axis=0), num_slots)
        bounds = (key, tl.minimum(key_of(high) - 1, key_of(highest)))
        key = tl.maximum(largest_key(values, scale, wanted, bounds, True, TILE, _SLOTS_PER_BLOCK), key)
    return key, is_found
