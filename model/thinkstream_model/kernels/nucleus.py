"""Where top-p's threshold lies in a whole row, and the few values that lie there.

Many programs share a row. A sample of it says about where, one reading weighs what is at or above each of a
few thresholds there, and another gathers what is between the two that the one sought lies between;
``threshold.py`` searches among these. Where they are too many, as in a row of equal values, it must search
the row itself.

Every sum runs over parts of the row that are always the same, in an order that is always the same.

B rows, V vocabulary, C chunks of it, N ids of a chunk or a sample, H thresholds, S slots for what a chunk's
ids brought, G groups of slots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.sampler import SamplingInputs

from .float_search import inverse_of, key_of, largest_key, likelihood, value_of
from .launch import is_dependent, launch_options
from .philox import log
from .tiles import power_of_2

_NUM_PROGRAMS = 1024
_MIN_PROGRAMS_OF_ROW = 4
_NUM_THRESHOLDS = tl.constexpr(8)
_NUM_SLOTS = tl.constexpr(512)
_SLOTS_PER_GROUP = tl.constexpr(128)
_NUM_SAMPLE_STEPS = tl.constexpr(16)
_NUM_RUNS = tl.constexpr(64)
_RUN_IDS = tl.constexpr(32)
_SLACK = tl.constexpr(0.01)
_SMALLEST_NORMAL = tl.constexpr(2.0**-126)


class Gathered(NamedTuple):
    """Of each row with top-p alone, the values between two thresholds that the one sought lies between.

    Attributes:
        bracket_B3: float32; the lower, the higher, and the mass that must come from between them.
        counts_BC: int32, how many values each chunk has there, be there slots for them or not.
        values_BCS: float32, these; what is no number fills the last group of slots.
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
    ladder_B4, bracket_B3 = peaks_BC.new_empty(num_rows, 4), peaks_BC.new_empty(num_rows, 3)
    masses_BCH = peaks_BC.new_empty(num_rows, num_chunks, _NUM_THRESHOLDS.value)
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
    _weigh_chunks[grid](*rows, masses_BC, ladder_B4, masses_BCH, *sizes, **options)
    _gather_chunks[grid](*rows, ladder_B4, masses_BCH, *gathered, *sizes, **options)
    return gathered


def programs_of_row(num_rows: int, num_chunks: int) -> int:
    """How many programs share a row: enough to fill a device, and few where there is nothing to do."""
    return min(num_chunks, max(_MIN_PROGRAMS_OF_ROW, _NUM_PROGRAMS // num_rows))


@triton.jit
def has_top_k(top_k: tl.tensor, num_valid_ids: tl.tensor) -> tl.tensor:
    """Whether top-k leaves anything out."""
    return (top_k > 0) & (top_k < num_valid_ids)


@triton.jit
def is_nucleus(
    temperature: tl.tensor, top_p: tl.tensor, top_k: tl.tensor, num_valid_ids: tl.tensor
) -> tl.tensor:
    """Whether a row has top-p and no top-k that would have left it little to weigh."""
    return (temperature > 0) & (top_p < 1) & ~has_top_k(top_k, num_valid_ids)


@triton.jit
def _weigh_chunks(
    logits_BV: tl.tensor,
    temperature_B: tl.tensor,
    top_p_B: tl.tensor,
    top_k_B: tl.tensor,
    peaks_BC: tl.tensor,
    masses_BC: tl.tensor,
    ladder_B4: tl.tensor,
    masses_BCH: tl.tensor,
    row_stride: tl.tensor,
    num_valid_ids: tl.tensor,
    num_chunks: tl.tensor,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """The mass of each chunk that is at or above each threshold.

    These are told by a ladder: the lowest, the second, the step from there on; and the mass wanted.
    """
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    temperature, top_p = tl.load(temperature_B + row), tl.load(top_p_B + row)
    if is_nucleus(temperature, top_p, tl.load(top_k_B + row), num_valid_ids):
        logits_row, place = logits_BV + row * row_stride, row * num_chunks
        chunks_C = tl.arange(0, CHUNKS)
        is_chunk_C = chunks_C < num_chunks
        peaks_C = tl.load(peaks_BC + place + chunks_C, mask=is_chunk_C, other=float("-inf"))
        scale = (tl.max(peaks_C, axis=0), inverse_of(temperature))
        masses_C = tl.load(masses_BC + place + chunks_C, mask=is_chunk_C, other=0.0)
        mass = tl.sum(masses_C * likelihood(peaks_C, scale), axis=0)
        left_out = tl.maximum((1.0 - top_p) * mass, _SMALLEST_NORMAL)
        low, second, step = _ladder(logits_row, num_valid_ids, scale, left_out)
        if tl.program_id(1) == 0:
            tl.store(ladder_B4 + row * 4, low)
            tl.store(ladder_B4 + row * 4 + 1, second)
            tl.store(ladder_B4 + row * 4 + 2, step)
            tl.store(ladder_B4 + row * 4 + 3, tl.maximum(top_p * mass, _SMALLEST_NORMAL))
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            masses_H = masses_BCH + (place + chunk) * _NUM_THRESHOLDS
            if tl.load(peaks_BC + place + chunk) >= low:
                ids_N = chunk * CHUNK + tl.arange(0, CHUNK)
                logits_N = tl.load(logits_row + ids_N, mask=ids_N < num_valid_ids, other=float("nan"))
                weights_N = likelihood(logits_N, scale)
                for rung in tl.static_range(_NUM_THRESHOLDS):
                    is_above_N = logits_N >= _threshold(low, second, step, rung)
                    tl.store(masses_H + rung, tl.sum(tl.where(is_above_N, weights_N, 0.0), axis=0))
            else:
                tl.store(masses_H + tl.arange(0, _NUM_THRESHOLDS), tl.zeros((_NUM_THRESHOLDS,), tl.float32))


@triton.jit
def _ladder(
    logits_row: tl.tensor, num_valid_ids: tl.tensor, scale: tl.tuple, left_out: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """A threshold that is low enough, and others, close together where a sample's tail is left out."""
    highest, inverse_temperature = scale
    # All that is lower than this weighs less together than what top-p leaves out.
    low = highest - (log(num_valid_ids.to(tl.float32) / left_out) + _SLACK) / inverse_temperature
    step = (value_of(key_of(highest) + 1) - low) / _NUM_SAMPLE_STEPS
    places_N = tl.arange(0, _NUM_RUNS * _RUN_IDS)
    ids_N = places_N // _RUN_IDS * num_valid_ids // _NUM_RUNS // _RUN_IDS * _RUN_IDS + places_N % _RUN_IDS
    is_id_N = ids_N < num_valid_ids
    logits_N = tl.load(logits_row + ids_N, mask=is_id_N, other=float("nan"))
    weights_N = likelihood(logits_N, scale)
    tail = left_out * tl.sum(is_id_N.to(tl.float32), axis=0) / num_valid_ids.to(tl.float32)
    place = tl.zeros((), tl.float32)
    for number in tl.static_range(1, _NUM_SAMPLE_STEPS):
        is_below_N = logits_N < low + step * number
        place += (tl.sum(tl.where(is_below_N, weights_N, 0.0), axis=0) <= tail).to(tl.float32)
    second = tl.maximum(low + step * (place - 1), low)
    return low, second, 3 * step / (_NUM_THRESHOLDS - 1)


@triton.jit
def _threshold(low: tl.tensor, second: tl.tensor, step: tl.tensor, rung: tl.tensor) -> tl.tensor:
    """Rounded once, wherever it is worked out."""
    return tl.where(rung == 0, low, tl.fma(step, (rung - 1) * 1.0, second))


@triton.jit
def _gather_chunks(
    logits_BV: tl.tensor,
    temperature_B: tl.tensor,
    top_p_B: tl.tensor,
    top_k_B: tl.tensor,
    peaks_BC: tl.tensor,
    ladder_B4: tl.tensor,
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
        place = row * num_chunks
        masses_row = masses_BCH + place * _NUM_THRESHOLDS
        low, high, wanted = _bracket(ladder_B4 + row * 4, masses_row, num_chunks, CHUNKS)
        if tl.program_id(1) == 0:
            tl.store(bracket_B3 + row * 3, low)
            tl.store(bracket_B3 + row * 3 + 1, high)
            tl.store(bracket_B3 + row * 3 + 2, wanted)
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            count = tl.zeros((), tl.int32)
            if tl.load(peaks_BC + place + chunk) >= low:
                ids_N = chunk * CHUNK + tl.arange(0, CHUNK)
                logits_N = tl.load(
                    logits_BV + row * row_stride + ids_N, mask=ids_N < num_valid_ids, other=float("nan")
                )
                is_between_N = (logits_N >= low) & (logits_N < high)
                ends_N = tl.cumsum(is_between_N.to(tl.int32), axis=0)
                count = tl.max(ends_N, axis=0)
                values_S = values_BCS + (place + chunk) * _NUM_SLOTS
                tl.store(values_S + ends_N - 1, logits_N, mask=is_between_N & (ends_N <= _NUM_SLOTS))
                rest = count + tl.arange(0, _SLOTS_PER_GROUP)
                is_rest = (rest < _filled(count)) & (rest < _NUM_SLOTS)
                tl.store(values_S + rest, tl.full(rest.shape, float("nan"), tl.float32), mask=is_rest)
            tl.store(counts_BC + place + chunk, count)


@triton.jit
def _filled(count: tl.tensor) -> tl.tensor:
    """The slots of whole groups that so many values take."""
    return tl.cdiv(count, _SLOTS_PER_GROUP) * _SLOTS_PER_GROUP


@triton.jit
def _bracket(
    ladder_4: tl.tensor, masses_CH: tl.tensor, num_chunks: tl.tensor, CHUNKS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The last threshold with the mass wanted, the next one, and what is wanted of that between."""
    low, second, step = tl.load(ladder_4), tl.load(ladder_4 + 1), tl.load(ladder_4 + 2)
    wanted = tl.load(ladder_4 + 3)
    chunks_C, rungs_H = tl.arange(0, CHUNKS), tl.arange(0, _NUM_THRESHOLDS)
    masses = tl.load(
        masses_CH + chunks_C[:, None] * _NUM_THRESHOLDS + rungs_H[None, :],
        mask=(chunks_C < num_chunks)[:, None],
        other=0.0,
    )
    masses_H = tl.sum(masses, axis=0)
    rung = tl.max(tl.where(masses_H >= wanted, rungs_H, 0), axis=0)
    mass_beyond = tl.max(tl.where(rungs_H > rung, masses_H, 0.0), axis=0)
    high = _threshold(low, second, step, rung + 1)
    high = tl.where(rung + 1 < _NUM_THRESHOLDS, high, float("inf"))
    return _threshold(low, second, step, rung), high, wanted - mass_beyond


@triton.jit
def gathered_key(
    gathered: tl.tuple,
    groups_row: tl.tensor,
    scale: tl.tuple,
    row: tl.tensor,
    num_chunks: tl.tensor,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Key of the threshold, and whether what was gathered has it; if not, no group was listed."""
    bracket_B3, counts_BC, values_BCS = gathered
    highest, _ = scale
    low, high = tl.load(bracket_B3 + row * 3), tl.load(bracket_B3 + row * 3 + 1)
    wanted, counts_row = tl.load(bracket_B3 + row * 3 + 2), counts_BC + row * num_chunks
    chunks_C = tl.arange(0, CHUNKS)
    counts_C = tl.load(counts_row + chunks_C, mask=chunks_C < num_chunks, other=0)
    is_found = (tl.max(counts_C, axis=0) <= _NUM_SLOTS) & (low > float("-inf")) & (low < float("inf"))
    key = key_of(low)
    if is_found:
        GROUPS_OF_CHUNK: tl.constexpr = _NUM_SLOTS // _SLOTS_PER_GROUP
        groups_G = tl.arange(0, CHUNKS * GROUPS_OF_CHUNK)
        chunks_G = groups_G // GROUPS_OF_CHUNK
        counts_G = tl.load(counts_row + chunks_G, mask=chunks_G < num_chunks, other=0)
        is_filled_G = counts_G > groups_G % GROUPS_OF_CHUNK * _SLOTS_PER_GROUP
        ends_G = tl.cumsum(is_filled_G.to(tl.int32), axis=0)
        tl.store(groups_row + ends_G - 1, groups_G, mask=is_filled_G)
        tl.debug_barrier()  # other threads of the program read what was stored
        num_slots = num_chunks * _NUM_SLOTS
        values = (values_BCS + row * num_slots, groups_row, tl.max(ends_G, axis=0), num_slots)
        bounds = (key, tl.minimum(key_of(high) - 1, key_of(highest)))
        key = tl.maximum(largest_key(values, scale, wanted, bounds, True, TILE, _SLOTS_PER_GROUP), key)
    return key, is_found
