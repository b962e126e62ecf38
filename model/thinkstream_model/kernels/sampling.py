"""One token per row of logits: temperature, filters, then the largest of logit plus Gumbel noise.

Two launches, two more where a row filters, and two more again where a row may have top-p without top-k.
What is kept is a threshold (``threshold.py``), what is random a pure function of seed, index and id
(``philox.py``), and the rest a maximum: no order of work changes it.

B rows, V vocabulary, C chunks of it, N ids of a chunk.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.sampler import NOT_A_TOKEN, SamplingInputs, sample

from .launch import is_dependent, launch_options
from .philox import gumbel_noise
from .threshold import lowest_kept, scaled
from .tiles import num_tiles, power_of_2

_CHUNK_IDS = 2048
_NOT_A_TOKEN = tl.constexpr(NOT_A_TOKEN)
_NOT_A_NUMBER = tl.constexpr(0x7FFF_FFFF)
_LAST_ID = tl.constexpr(0xFFFF_FFFF)


def sample_tokens(logits_BV: Tensor, inputs: SamplingInputs, *, num_valid_ids: int) -> Tensor:
    """Choose one token per row.

    Args:
        logits_BV: float32, after bias and penalties; not changed. Each row is contiguous.
        inputs: How to sample each row.
        num_valid_ids: Ids from here on are never chosen.

    Returns:
        Token ids, int64, [B]: of equal ones the lowest, ``NOT_A_TOKEN`` where a logit is no number.
    """
    assert logits_BV.dtype == torch.float32 and logits_BV.stride(1) == 1
    num_rows, num_chunks, device = logits_BV.shape[0], num_tiles(num_valid_ids, _CHUNK_IDS), logits_BV.device
    best_BC = torch.empty(num_rows, num_chunks, dtype=torch.int64, device=device)
    token_ids_B = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return token_ids_B
    # Where no row filters, the kernel never looks at the threshold: any tensor will do.
    lowest_B = inputs.temperature_B
    if not inputs.unfiltered:
        lowest_B = lowest_kept(logits_BV, inputs, num_valid_ids=num_valid_ids)
    _best_of_chunks[(num_rows, num_chunks)](
        logits_BV, lowest_B, inputs.temperature_B, inputs.seed_B, inputs.index_B, best_BC,
        logits_BV.stride(0), num_valid_ids, num_chunks, IS_FILTERED=not inputs.unfiltered, CHUNK=_CHUNK_IDS,
        DEPENDENT=is_dependent(device), num_warps=4, **launch_options(device),
    )  # fmt: skip
    _best_of_rows[(num_rows,)](
        best_BC, token_ids_B, num_chunks, CHUNKS=power_of_2(num_chunks),
        DEPENDENT=is_dependent(device), num_warps=1, **launch_options(device),
    )  # fmt: skip
    return token_ids_B


def sample_tokens_reference(logits_BV: Tensor, inputs: SamplingInputs, *, num_valid_ids: int) -> Tensor:
    """``sample_tokens`` in plain torch."""
    return sample(logits_BV, inputs, num_valid_ids=num_valid_ids).token_ids_B


@triton.jit
def _best_of_chunks(
    logits_BV: tl.tensor,
    lowest_B: tl.tensor,
    temperature_B: tl.tensor,
    seed_B: tl.tensor,
    index_B: tl.tensor,
    best_BC: tl.tensor,
    row_stride: tl.tensor,
    num_valid_ids: tl.tensor,
    num_chunks: tl.tensor,
    IS_FILTERED: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """The best score of a chunk and its id, packed into one number."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperature_B + row)
    is_random = temperature > 0
    first_id = chunk * CHUNK
    ids_N = first_id + tl.arange(0, CHUNK)
    is_kept_N = ids_N < num_valid_ids
    logits_N = tl.load(logits_BV + row * row_stride + ids_N, mask=is_kept_N, other=0.0)
    scores_N = scaled(logits_N, temperature)
    needs_noise = is_random
    if IS_FILTERED:
        # What is no number is kept, so that it shows; most chunks keep nothing and need no noise.
        is_kept_N = is_kept_N & ~(scores_N < tl.load(lowest_B + row))
        needs_noise = needs_noise & (tl.max(is_kept_N.to(tl.int32), axis=0) > 0)
    if needs_noise:
        scores_N += gumbel_noise(tl.load(seed_B + row), tl.load(index_B + row), first_id, CHUNK)
    packed_N = _pack(tl.where(is_kept_N, scores_N, float("-inf")), ids_N)
    tl.store(best_BC + row * num_chunks + chunk, tl.max(packed_N, axis=0))


@triton.jit
def _pack(scores: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """Score and id as one int64 that orders by score, then lowest id; what is no number comes first.

    Zero must have one sign only.
    """
    bits = scores.to(tl.int32, bitcast=True)
    # The bits of floats order like integers once those of negative ones are flipped.
    ordered = tl.where(scores != scores, _NOT_A_NUMBER, bits ^ ((bits >> 31) & 0x7FFF_FFFF))
    return (ordered.to(tl.int64) << 32) | (_LAST_ID - ids.to(tl.int64))


@triton.jit
def _best_of_rows(
    best_BC: tl.tensor,
    token_ids_B: tl.tensor,
    num_chunks: tl.tensor,
    CHUNKS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """The best of a row's chunks."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    chunks_C = tl.arange(0, CHUNKS)
    # A copy of the first chunk changes no maximum.
    packed_C = tl.load(best_BC + row * num_chunks + tl.where(chunks_C < num_chunks, chunks_C, 0))
    best = tl.max(packed_C, axis=0)
    token_id = _LAST_ID - (best & _LAST_ID)
    tl.store(token_ids_B + row, tl.where((best >> 32) == _NOT_A_NUMBER, _NOT_A_TOKEN, token_id))
