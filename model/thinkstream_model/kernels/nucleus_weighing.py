"""The mass of a whole row at or above each of a few thresholds, and which two of these top-p's lies between.

Where thresholds serve best is guessed from a sample of the row. Each begins an interval that is open above::

    low         second                                     highest
     |  . . . .  |-----|-----|-----|-----|-----|-----|--------
     0           1     2     3     4     5     6     7

Below the lowest there is less than top-p leaves out, so the threshold sought is not there. Sixteen steps of
equal length lead from it to what is above the highest logit: the sample tells the step that the one sought
should lie in. The others begin a step before this and cut the step, the one before and the one behind into
as many intervals as they are, of which the last has no end. Where the sample misled, the interval from the
lowest to the second, or the last, has the threshold, and may have more values than there are slots for.

Every sum runs over parts of the row that are always the same, in an order that is always the same.

B rows, V vocabulary, C chunks of it, N ids of a chunk or a sample, H thresholds.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .float_search import SMALLEST_NORMAL, inverse_of, key_of, likelihood, value_of
from .philox import log

NUM_THRESHOLDS = tl.constexpr(8)
"""Each costs a comparison and a sum of every chunk: with 16, 256 rows took longer on an H100."""
_NUM_SAMPLE_STEPS = tl.constexpr(16)
"""From the lowest threshold to what is above the highest logit. Were they longer, the intervals would hold
too many values; were they shorter, the sample's 2,048 ids would miss the step more often."""
_NUM_RUNS = tl.constexpr(64)
"""Of neighbouring ids that a sample is made of, spread evenly over the row."""
_RUN_IDS = tl.constexpr(32)
"""Of a run, which begins at a multiple of it: 128 bytes, what memory hands over at once."""
_SLACK = tl.constexpr(0.01)
"""By how much more than it need the lowest threshold's logarithm is lower: a sum of float32 errs far less."""


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
def weigh_chunks(
    logits_BV: tl.tensor,
    temperature_B: tl.tensor,
    top_p_B: tl.tensor,
    top_k_B: tl.tensor,
    peaks_BC: tl.tensor,
    masses_BC: tl.tensor,
    spacing_B4: tl.tensor,
    masses_BCH: tl.tensor,
    row_stride: tl.tensor,
    num_valid_ids: tl.tensor,
    num_chunks: tl.tensor,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """The mass of each chunk that is at or above each threshold.

    ``spacing_B4`` tells these: the lowest, the second, the step from there on; and the mass wanted.
    """
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    temperature, top_p = tl.load(temperature_B + row), tl.load(top_p_B + row)
    if is_nucleus(temperature, top_p, tl.load(top_k_B + row), num_valid_ids):
        logits_row, first_chunk = logits_BV + row * row_stride, row * num_chunks
        chunks_C = tl.arange(0, CHUNKS)
        is_chunk_C = chunks_C < num_chunks
        peaks_C = tl.load(peaks_BC + first_chunk + chunks_C, mask=is_chunk_C, other=float("-inf"))
        scale = (tl.max(peaks_C, axis=0), inverse_of(temperature))
        masses_C = tl.load(masses_BC + first_chunk + chunks_C, mask=is_chunk_C, other=0.0)
        mass = tl.sum(masses_C * likelihood(peaks_C, scale), axis=0)
        left_out = tl.maximum((1.0 - top_p) * mass, SMALLEST_NORMAL)
        low, second, step = _spacing(logits_row, num_valid_ids, scale, left_out)
        if tl.program_id(1) == 0:
            tl.store(spacing_B4 + row * 4, low)
            tl.store(spacing_B4 + row * 4 + 1, second)
            tl.store(spacing_B4 + row * 4 + 2, step)
            tl.store(spacing_B4 + row * 4 + 3, tl.maximum(top_p * mass, SMALLEST_NORMAL))
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            masses_H = masses_BCH + (first_chunk + chunk) * NUM_THRESHOLDS
            if tl.load(peaks_BC + first_chunk + chunk) >= low:
                ids_N = chunk * CHUNK + tl.arange(0, CHUNK)
                logits_N = tl.load(logits_row + ids_N, mask=ids_N < num_valid_ids, other=float("nan"))
                weights_N = likelihood(logits_N, scale)
                for number in tl.static_range(NUM_THRESHOLDS):
                    is_above_N = logits_N >= _threshold(low, second, step, number)
                    tl.store(masses_H + number, tl.sum(tl.where(is_above_N, weights_N, 0.0), axis=0))
            else:
                tl.store(masses_H + tl.arange(0, NUM_THRESHOLDS), tl.zeros((NUM_THRESHOLDS,), tl.float32))


@triton.jit
def _spacing(
    logits_row: tl.tensor, num_valid_ids: tl.tensor, scale: tl.tuple, left_out: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The lowest threshold, the second and the step from there on, as drawn at the top."""
    highest, inverse_temperature = scale
    # All that is lower than this weighs less together than what top-p leaves out.
    low = highest - (log(num_valid_ids.to(tl.float32) / left_out) + _SLACK) / inverse_temperature
    sample_step = (value_of(key_of(highest) + 1) - low) / _NUM_SAMPLE_STEPS
    places_N = tl.arange(0, _NUM_RUNS * _RUN_IDS)
    ids_N = places_N // _RUN_IDS * num_valid_ids // _NUM_RUNS // _RUN_IDS * _RUN_IDS + places_N % _RUN_IDS
    is_id_N = ids_N < num_valid_ids
    logits_N = tl.load(logits_row + ids_N, mask=is_id_N, other=float("nan"))
    weights_N = likelihood(logits_N, scale)
    tail = left_out * tl.sum(is_id_N.to(tl.float32), axis=0) / num_valid_ids.to(tl.float32)
    num_light = tl.zeros((), tl.float32)
    for number in tl.static_range(1, _NUM_SAMPLE_STEPS):
        is_below_N = logits_N < low + sample_step * number
        num_light += (tl.sum(tl.where(is_below_N, weights_N, 0.0), axis=0) <= tail).to(tl.float32)
    # So many steps lie below the one that the sample's tail ends in: begin one before it, end one behind it.
    second = tl.maximum(low + sample_step * (num_light - 1), low)
    return low, second, 3 * sample_step / (NUM_THRESHOLDS - 1)


@triton.jit
def _threshold(low: tl.tensor, second: tl.tensor, step: tl.tensor, number: tl.tensor) -> tl.tensor:
    """The one of a number, rounded once: the same wherever it is worked out."""
    return tl.where(number == 0, low, tl.fma(step, (number - 1) * 1.0, second))


@triton.jit
def bracket(
    spacing_4: tl.tensor, masses_CH: tl.tensor, num_chunks: tl.tensor, CHUNKS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The last threshold with the mass wanted, the next one, and what is wanted of that between."""
    low, second, step = tl.load(spacing_4), tl.load(spacing_4 + 1), tl.load(spacing_4 + 2)
    wanted = tl.load(spacing_4 + 3)
    chunks_C, numbers_H = tl.arange(0, CHUNKS), tl.arange(0, NUM_THRESHOLDS)
    masses = tl.load(
        masses_CH + chunks_C[:, None] * NUM_THRESHOLDS + numbers_H[None, :],
        mask=(chunks_C < num_chunks)[:, None],
        other=0.0,
    )
    masses_H = tl.sum(masses, axis=0)
    number = tl.max(tl.where(masses_H >= wanted, numbers_H, 0), axis=0)
    mass_beyond = tl.max(tl.where(numbers_H > number, masses_H, 0.0), axis=0)
    high = _threshold(low, second, step, number + 1)
    high = tl.where(number + 1 < NUM_THRESHOLDS, high, float("inf"))
    return _threshold(low, second, step, number), high, wanted - mass_beyond
