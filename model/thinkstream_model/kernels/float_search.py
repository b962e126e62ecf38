"""The largest float that has a given weight of a row's values at or above it.

Floats are searched by keys, integers that order like them, two bits at a time: one reading of the values
weighs what is at or above each of three thresholds. The last bit leaves a value of the row.

The values are a tuple: a row's logits, the groups of ids to read, how many groups, how many ids are valid;
or slots and blocks of them in place of ids and groups (``nucleus.py``).
The scale is another: the row's largest logit and the inverse of its temperature.

I ids of a group, M groups in a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from thinkstream_model.sampler import LEAST_TEMPERATURE

LOWEST_KEY = tl.constexpr(-(1 << 31))
NUM_DIGITS = tl.constexpr(16)
SMALLEST_NORMAL = tl.constexpr(2.0**-126)
"""The least that a mass or a share is taken for: enough of none would be above the largest value, too."""
_MINUS_INFINITY_KEY = tl.constexpr(-0x7F80_0001)
_LEAST_TEMPERATURE = tl.constexpr(LEAST_TEMPERATURE)


@triton.jit
def largest_key(
    values: tl.tuple,
    scale: tl.tuple,
    target: tl.tensor,
    bounds: tl.tuple,
    IS_MASS: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """Key of the largest threshold that has the target's weight at or above it.

    ``bounds`` are keys between which it lies, both included: the digits that these share need no search.
    """
    _, _, num_candidates, _ = values
    if num_candidates <= TILE:  # which stays in registers then
        logits_MI = _tile_logits(values, 0, TILE, GROUP)
        key = digit_search(logits_MI, _weights(logits_MI, scale, IS_MASS), target, bounds)
    else:
        first_digit, key = _shared(bounds)
        for digit in range(first_digit, NUM_DIGITS):
            step = tl.full((), 1, tl.int64) << (30 - 2 * digit)
            low, middle, high = value_of(key + step), value_of(key + 2 * step), value_of(key + 3 * step)
            low, middle, high = weigh(values, scale, low, middle, high, IS_MASS, TILE, GROUP)
            key += ((low >= target).to(tl.int64) + (middle >= target) + (high >= target)) * step
    return key


@triton.jit
def digit_search(logits: tl.tensor, weights: tl.tensor, target: tl.tensor, bounds: tl.tuple) -> tl.tensor:
    """``largest_key`` over one tile of logits and their weights."""
    first_digit, key = _shared(bounds)
    for digit in range(first_digit, NUM_DIGITS):
        step = tl.full((), 1, tl.int64) << (30 - 2 * digit)
        low = tl.sum(_above(logits, weights, value_of(key + step)))
        middle = tl.sum(_above(logits, weights, value_of(key + 2 * step)))
        high = tl.sum(_above(logits, weights, value_of(key + 3 * step)))
        key += ((low >= target).to(tl.int64) + (middle >= target) + (high >= target)) * step
    return key


@triton.jit
def _shared(bounds: tl.tuple) -> tuple[tl.tensor, tl.tensor]:
    """How many digits two keys share from the first on, and the key of these with zeros behind."""
    lowest, highest = bounds[0] - LOWEST_KEY, bounds[1] - LOWEST_KEY
    num_digits = tl.zeros((), tl.int32)
    for digit in range(NUM_DIGITS):
        num_digits += (lowest >> (30 - 2 * digit) == highest >> (30 - 2 * digit)).to(tl.int32)
    num_bits = 32 - 2 * num_digits.to(tl.int64)
    return num_digits, (lowest >> num_bits << num_bits) + LOWEST_KEY


@triton.jit
def weigh(
    values: tl.tuple,
    scale: tl.tuple,
    low: tl.tensor,
    middle: tl.tensor,
    high: tl.tensor,
    IS_MASS: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The weight of what is at or above each of three thresholds: its mass, or its number."""
    _, _, num_candidates, _ = values
    above_low_MI = tl.zeros((TILE, GROUP), tl.float32)
    above_middle_MI = tl.zeros((TILE, GROUP), tl.float32)
    above_high_MI = tl.zeros((TILE, GROUP), tl.float32)
    for first in range(0, num_candidates, TILE):
        logits_MI = _tile_logits(values, first, TILE, GROUP)
        weights_MI = _weights(logits_MI, scale, IS_MASS)
        above_low_MI += _above(logits_MI, weights_MI, low)
        above_middle_MI += _above(logits_MI, weights_MI, middle)
        above_high_MI += _above(logits_MI, weights_MI, high)
    return tl.sum(above_low_MI), tl.sum(above_middle_MI), tl.sum(above_high_MI)


@triton.jit
def _tile_logits(values: tl.tuple, first: tl.tensor, TILE: tl.constexpr, GROUP: tl.constexpr) -> tl.tensor:
    """Logits of the groups from the first on; what is no value is no number, and at or above nothing."""
    logits_row, groups_row, num_candidates, num_valid_ids = values
    places_M = first + tl.arange(0, TILE)
    groups_M = tl.load(groups_row + places_M, mask=places_M < num_candidates, other=0)
    ids_MI = groups_M[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_value_MI = (places_M < num_candidates)[:, None] & (ids_MI < num_valid_ids)
    return tl.load(logits_row + ids_MI, mask=is_value_MI, other=float("nan"))


@triton.jit
def _weights(logits_MI: tl.tensor, scale: tl.tuple, IS_MASS: tl.constexpr) -> tl.tensor:
    return likelihood(logits_MI, scale) if IS_MASS else tl.full(logits_MI.shape, 1.0, tl.float32)


@triton.jit
def _above(logits: tl.tensor, weights: tl.tensor, threshold: tl.tensor) -> tl.tensor:
    return tl.where(logits >= threshold, weights, 0.0)


@triton.jit
def inverse_of(temperature: tl.tensor) -> tl.tensor:
    """1 where greedy."""
    return tl.where(temperature > 0, tl.div_rn(1.0, tl.maximum(temperature, _LEAST_TEMPERATURE)), 1.0)


@triton.jit
def likelihood(logits: tl.tensor, scale: tl.tuple) -> tl.tensor:
    """Relative to the most likely, which has 1 even where it is infinite."""
    highest, inverse_temperature = scale
    return tl.where(logits == highest, 1.0, tl.exp((logits - highest) * inverse_temperature))


@triton.jit
def value_of(key: tl.tensor) -> tl.tensor:
    """The float of a key. Keys below that of minus infinity, which are no numbers, stand for it."""
    key = tl.maximum(key, _MINUS_INFINITY_KEY).to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFF_FFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_of(value: tl.tensor) -> tl.tensor:
    """The key of a float that is a number."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFF_FFFF)).to(tl.int64)
