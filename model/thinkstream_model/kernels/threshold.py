"""The smallest value that top-k, top-p and min-p keep of each row, without a sort.

Both top-k and top-p ask for the largest threshold that still has enough at or above it: k values, or a
share of the mass (``float_search.py``). It is a value of the row, and whatever ties with it is kept too.

A search reads the row many times, but only the groups of ids that can matter. The k-th largest of the
groups' maxima is at most the k-th largest value of all, so top-k leaves about k groups to read. Top-p alone
has the whole row to weigh, which many programs do (``nucleus.py``).

Sums run over a row's groups in an order that is the row's own: nothing of them depends on other rows.

B rows, V vocabulary, C chunks of it, G groups, I ids of a group, M groups in a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.sampler import LEAST_TEMPERATURE, SamplingInputs

from .float_search import (
    LOWEST_KEY,
    SMALLEST_NORMAL,
    inverse_of,
    key_of,
    largest_key,
    likelihood,
    value_of,
    weigh,
)
from .launch import is_dependent, launch_options
from .nucleus import gather_nucleus, gathered_key
from .nucleus_weighing import has_top_k, is_nucleus
from .philox import log
from .tiles import num_tiles, power_of_2

_GROUP_IDS = 128
_GROUPS_PER_CHUNK = 16
_GROUPS_PER_TILE = 64
_NUM_CANDIDATE_DIGITS = tl.constexpr(10)


def lowest_kept(logits_BV: Tensor, inputs: SamplingInputs, *, num_valid_ids: int) -> Tensor:
    """The smallest logit divided by temperature that the row's filters keep.

    Args:
        logits_BV: float32; each row is contiguous.
        inputs: How to sample each row.
        num_valid_ids: Ids from here on do not count.

    Returns:
        float32, [B]; minus infinity where the row is greedy or has no filter.
    """
    num_rows, num_groups, device = logits_BV.shape[0], num_tiles(num_valid_ids, _GROUP_IDS), logits_BV.device
    num_chunks = num_tiles(num_groups, _GROUPS_PER_CHUNK)
    lowest_B = torch.empty_like(inputs.temperature_B)
    maxima_BG, peaks_BC, masses_BC = (
        torch.empty(num_rows, size, dtype=torch.float32, device=device)
        for size in (num_groups, num_chunks, num_chunks)
    )
    groups_BG = torch.empty_like(maxima_BG, dtype=torch.int32)
    rows = (logits_BV, inputs.temperature_B, inputs.top_p_B, inputs.top_k_B, inputs.min_p_B)
    sizes = (logits_BV.stride(0), num_valid_ids, num_groups, num_chunks)
    _group_maxima[(num_rows, num_chunks)](
        *rows, maxima_BG, peaks_BC, masses_BC, *sizes, TILE=_GROUPS_PER_CHUNK, GROUP=_GROUP_IDS,
        DEPENDENT=is_dependent(device), num_warps=4, **launch_options(device),
    )  # fmt: skip
    gathered = gather_nucleus(
        logits_BV, inputs, peaks_BC, masses_BC,
        num_valid_ids=num_valid_ids, chunk_ids=_GROUPS_PER_CHUNK * _GROUP_IDS,
    )  # fmt: skip
    _lowest_of_rows[(num_rows,)](
        *rows, maxima_BG, groups_BG, *gathered, lowest_B, *sizes,
        GROUPS=power_of_2(num_groups), CHUNKS=power_of_2(num_chunks), TILE=_GROUPS_PER_TILE, GROUP=_GROUP_IDS,
        DEPENDENT=is_dependent(device), num_warps=16, **launch_options(device),
    )  # fmt: skip
    return lowest_B


def lowest_kept_reference(logits_BV: Tensor, inputs: SamplingInputs, *, num_valid_ids: int) -> Tensor:
    """``lowest_kept`` in plain torch: one row after the other, in float64."""
    lowest_B = torch.full_like(inputs.temperature_B, float("-inf"))
    for row, temperature in enumerate(inputs.temperature_B):
        if temperature <= 0:
            continue
        scaled_N = logits_BV[row, :num_valid_ids] / temperature.clamp(min=LEAST_TEMPERATURE)
        sorted_N = scaled_N.sort(descending=True).values
        if inputs.top_k_B[row] > 0:
            sorted_N = sorted_N[: inputs.top_k_B[row]]
        log_likelihood_N = (sorted_N.double() - sorted_N[0].double()).nan_to_num(0.0, neginf=float("-inf"))
        likelihood_N = log_likelihood_N.exp()
        before_N = likelihood_N.cumsum(0) - likelihood_N
        in_top_p_N = (before_N < inputs.top_p_B[row] * likelihood_N.sum()) | (inputs.top_p_B[row] >= 1)
        num_kept = (in_top_p_N & (log_likelihood_N >= inputs.min_p_B[row].double().log())).sum()
        lowest_B[row] = sorted_N[num_kept - 1]
    return lowest_B


@triton.jit
def scaled(logits: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """Logits over temperature, as all that compares them must work it out; zero has one sign only."""
    return logits * inverse_of(temperature) + 0.0


@triton.jit
def _has_filter(
    temperature: tl.tensor,
    top_p: tl.tensor,
    top_k: tl.tensor,
    min_p: tl.tensor,
    num_valid_ids: tl.tensor,
) -> tl.tensor:
    return (temperature > 0) & (has_top_k(top_k, num_valid_ids) | (top_p < 1) | (min_p > 0))


@triton.jit
def _group_maxima(
    logits_BV: tl.tensor,
    temperature_B: tl.tensor,
    top_p_B: tl.tensor,
    top_k_B: tl.tensor,
    min_p_B: tl.tensor,
    maxima_BG: tl.tensor,
    peaks_BC: tl.tensor,
    masses_BC: tl.tensor,
    row_stride: tl.tensor,
    num_valid_ids: tl.tensor,
    num_groups: tl.tensor,
    num_chunks: tl.tensor,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """The largest logit of every group, in rows that filter; where top-p is alone, a chunk's mass too."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature, top_p, top_k = tl.load(temperature_B + row), tl.load(top_p_B + row), tl.load(top_k_B + row)
    if _has_filter(temperature, top_p, top_k, tl.load(min_p_B + row), num_valid_ids):
        groups_M = chunk * TILE + tl.arange(0, TILE)
        ids_MI = groups_M[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        logits_MI = tl.load(
            logits_BV + row * row_stride + ids_MI, mask=ids_MI < num_valid_ids, other=float("-inf")
        )
        maxima_M = tl.max(logits_MI, axis=1)
        tl.store(maxima_BG + row * num_groups + groups_M, maxima_M, mask=groups_M < num_groups)
        if is_nucleus(temperature, top_p, top_k, num_valid_ids):
            peak, place = tl.max(maxima_M, axis=0), row * num_chunks + chunk
            tl.store(peaks_BC + place, peak)
            tl.store(masses_BC + place, tl.sum(likelihood(logits_MI, (peak, inverse_of(temperature)))))


@triton.jit
def _lowest_of_rows(
    logits_BV: tl.tensor,
    temperature_B: tl.tensor,
    top_p_B: tl.tensor,
    top_k_B: tl.tensor,
    min_p_B: tl.tensor,
    maxima_BG: tl.tensor,
    groups_BG: tl.tensor,
    bracket_B3: tl.tensor,
    counts_BC: tl.tensor,
    values_BCS: tl.tensor,
    lowest_B: tl.tensor,
    row_stride: tl.tensor,
    num_valid_ids: tl.tensor,
    num_groups: tl.tensor,
    num_chunks: tl.tensor,
    GROUPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """The filters of one row, one after the other."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    temperature, top_p = tl.load(temperature_B + row), tl.load(top_p_B + row)
    top_k, min_p = tl.load(top_k_B + row), tl.load(min_p_B + row)
    lowest = float("-inf")
    if _has_filter(temperature, top_p, top_k, min_p, num_valid_ids):
        is_cut = has_top_k(top_k, num_valid_ids)
        maxima_row, groups_row = maxima_BG + row * num_groups, groups_BG + row * num_groups
        num_candidates, lowest_maximum, highest = _candidates(
            maxima_row, groups_row, tl.where(is_cut, top_k, 0), num_groups, GROUPS
        )
        values = (logits_BV + row * row_stride, groups_row, num_candidates, num_valid_ids)
        scale = (highest, inverse_of(temperature))
        key, highest_key = key_of(lowest_maximum), key_of(highest)
        if is_cut:
            bounds = (key, highest_key)
            key = largest_key(values, scale, top_k.to(tl.float32), bounds, False, TILE, GROUP)
        is_found = tl.full((), False, tl.int1)
        if is_nucleus(temperature, top_p, top_k, num_valid_ids):
            gathered = (bracket_B3, counts_BC, values_BCS)
            found, is_found = gathered_key(gathered, groups_row, scale, row, num_chunks, CHUNKS, TILE, GROUP)
            key = tl.where(is_found, found, key)
        if (top_p < 1) & ~is_found:
            # Of several that tie at the k-th place, only as many count as there are places.
            beyond = value_of(key + 1)
            mass, _, _ = weigh(values, scale, beyond, beyond, beyond, True, TILE, GROUP)
            if is_cut:
                count, _, _ = weigh(values, scale, beyond, beyond, beyond, False, TILE, GROUP)
                mass += (top_k.to(tl.float32) - count) * likelihood(value_of(key), scale)
            target = tl.maximum(top_p * mass, SMALLEST_NORMAL)
            key = largest_key(values, scale, target, (key, highest_key), True, TILE, GROUP)
        highest = scaled(highest, temperature)
        in_min_p = tl.where(min_p > 0, highest + log(tl.maximum(min_p, SMALLEST_NORMAL)), float("-inf"))
        lowest = tl.maximum(scaled(value_of(key), temperature), in_min_p)
        lowest = tl.minimum(lowest, highest)  # the most likely stays, whatever was asked for
    tl.store(lowest_B + row, lowest)


@triton.jit
def _candidates(
    maxima_row: tl.tensor,
    groups_row: tl.tensor,
    top_k: tl.tensor,
    num_groups: tl.tensor,
    GROUPS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """List the groups that can hold one of the k largest values, and few others; all where k is 0.

    Returns:
        How many, a number that all of these values reach, and the largest value of all.
    """
    groups_G = tl.arange(0, GROUPS)
    is_group_G = groups_G < num_groups
    maxima_G = tl.load(maxima_row + groups_G, mask=is_group_G, other=float("-inf"))
    lowest = tl.full((), float("-inf"), tl.float32)
    if (top_k > 0) & (top_k <= num_groups):
        key = tl.zeros((), tl.int64) + LOWEST_KEY
        for digit in range(_NUM_CANDIDATE_DIGITS):
            step = tl.full((), 1, tl.int64) << (30 - 2 * digit)
            thresholds_4 = value_of(key + step * tl.arange(0, 4))
            is_above_G4 = is_group_G[:, None] & (maxima_G[:, None] >= thresholds_4[None, :])
            has_enough_4 = tl.sum(is_above_G4.to(tl.int32), axis=0) >= top_k
            key += step * (tl.sum(has_enough_4.to(tl.int64), axis=0) - 1)
        lowest = value_of(key)
    is_candidate_G = is_group_G & (maxima_G >= lowest)
    ends_G = tl.cumsum(is_candidate_G.to(tl.int32), axis=0)
    tl.store(groups_row + ends_G - 1, groups_G, mask=is_candidate_G)
    tl.debug_barrier()  # other threads of the program read what was stored
    return tl.max(ends_G, axis=0), lowest, tl.max(maxima_G, axis=0)
