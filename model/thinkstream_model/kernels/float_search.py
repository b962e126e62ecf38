"""The largest float that has a given weight of a row's values at or above it.

Floats are searched by keys, integers that order like them, two bits at a time: one reading of the values
weighs what is at or above each of three thresholds. The last bit leaves a value of the row.

The values are a tuple: a row's logits, the groups of ids to read, how many groups, how many ids are valid.
The scale is another: the row's largest logit and the inverse of its temperature.

I ids of a group, M groups in a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST_KEY = tl.constexpr(-(1 << 31))
NUM_DIGITS = tl.constexpr(16)
_MINUS_INFINITY_KEY = tl.constexpr(-0x7F80_0001)


@triton.jit
def largest_key(
    values: tl.tuple,
    scale: tl.tuple,
    target: tl.tensor,
    IS_MASS: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """Key of the largest threshold that has the target's weight at or above it."""
    key = tl.zeros((), tl.int64) + LOWEST_KEY
    for digit in range(NUM_DIGITS):
        step = tl.full((), 1, tl.int64) << (30 - 2 * digit)
        low, middle, high = value_of(key + step), value_of(key + 2 * step), value_of(key + 3 * step)
        low, middle, high = weigh(values, scale, low, middle, high, IS_MASS, TILE, GROUP)
        num_steps = (low >= target).to(tl.int64) + (middle >= target) + (high >= target)
        key += num_steps * step
    return key


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
    logits_row, groups_row, num_candidates, num_valid_ids = values
    above_low_MI = tl.zeros((TILE, GROUP), tl.float32)
    above_middle_MI = tl.zeros((TILE, GROUP), tl.float32)
    above_high_MI = tl.zeros((TILE, GROUP), tl.float32)
    for first in range(0, num_candidates, TILE):
        places_M = first + tl.arange(0, TILE)
        groups_M = tl.load(groups_row + places_M, mask=places_M < num_candidates, other=0)
        ids_MI = groups_M[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        is_value_MI = (places_M < num_candidates)[:, None] & (ids_MI < num_valid_ids)
        # What is no number is at or above nothing.
        logits_MI = tl.load(logits_row + ids_MI, mask=is_value_MI, other=float("nan"))
        weights_MI = likelihood(logits_MI, scale) if IS_MASS else 1.0
        above_low_MI += tl.where(logits_MI >= low, weights_MI, 0.0)
        above_middle_MI += tl.where(logits_MI >= middle, weights_MI, 0.0)
        above_high_MI += tl.where(logits_MI >= high, weights_MI, 0.0)
    return tl.sum(above_low_MI), tl.sum(above_middle_MI), tl.sum(above_high_MI)


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
