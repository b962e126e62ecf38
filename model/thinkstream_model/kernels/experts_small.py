"""The experts' products of a small batch, without tensor cores and without lists.

Weights go from memory into registers, all of a program's at once, and are multiplied there. The second
product also weighs and sums a row's experts and adds them to the residual stream. The sums are in another
order than those of ``experts``, so the bits are others than there.

T rows, D width, E experts, K experts a row, I inner width, P = T * K pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import is_dependent, is_nvidia, launch_options
from .tiles import num_tiles, power_of_2

MAX_ROWS = 2
"""Up to so many rows that is faster than ``experts`` (measured on an H100)."""

_CHUNK = 256
_GATE_UP_BLOCK = (2, 4)
"""Channels and warps of a program. Measured on an H100: 87 to 96% of the weights' bandwidth."""
_DOWN_BLOCK = (16, 16)
"""Measured on an H100: 79 to 91% of the weights' bandwidth, with all of a processor's registers full."""


@triton.jit(do_not_specialize=("num_pairs",))
def _gate_up_kernel(
    hidden: tl.tensor,
    gate_up: tl.tensor,
    expert_ids: tl.tensor,
    inner: tl.tensor,
    num_pairs: tl.tensor,
    hidden_stride: tl.tensor,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    TOP_K: tl.constexpr,
    ALL_PAIRS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Some channels of one pair's expert, for all its pairs; only the first of them has work to do."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    tiles_each: tl.constexpr = (INNER + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    own = tl.program_id(0) // tiles_each
    channels = tl.program_id(0) % tiles_each * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    columns = tl.arange(0, BLOCK_WIDTH)
    pairs = tl.arange(0, ALL_PAIRS)
    expert = tl.load(expert_ids + own).to(tl.int64)
    is_shared = tl.load(expert_ids + pairs, mask=pairs < num_pairs, other=-1) == expert
    if tl.min(tl.where(is_shared, pairs, ALL_PAIRS), 0) == own:
        inside = (channels < INNER)[:, None] & (columns < WIDTH)[None, :]
        places = gate_up + (2 * INNER * expert + channels[:, None]) * WIDTH + columns[None, :]
        gates = tl.load(places, mask=inside, other=0.0, eviction_policy="evict_first")
        ups = tl.load(places + INNER * WIDTH, mask=inside, other=0.0, eviction_policy="evict_first")
        pair = own
        while pair < ALL_PAIRS:
            place = hidden + (pair // TOP_K) * hidden_stride
            row = tl.load(place + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]
            gate = tl.sum(gates.to(tl.float32) * row, 1)
            gated = gate / (1.0 + tl.exp(-gate)) * tl.sum(ups.to(tl.float32) * row, 1)
            tl.store(inner + pair * INNER + channels, gated.to(inner.dtype.element_ty), mask=channels < INNER)
            pair = tl.min(tl.where(is_shared & (pairs > pair), pairs, ALL_PAIRS), 0)


@triton.jit
def _down_kernel(
    inner: tl.tensor,
    down: tl.tensor,
    expert_ids: tl.tensor,
    weights: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Some channels of one row: all its experts' weights are on their way before the first is used."""
    row = tl.program_id(0)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    columns = tl.arange(0, CHUNK)
    num_chunks: tl.constexpr = (INNER + CHUNK - 1) // CHUNK
    channel_rows = down + tl.minimum(channels, WIDTH - 1)[:, None] * INNER + columns[None, :]
    # Before the wait, for which the device would else lie idle. What the experts' numbers came from ran
    # before ``gate_up_small``, and is complete: that kernel waited for it before it let this one start.
    tiles = ()
    for k in tl.static_range(TOP_K):
        expert = tl.load(expert_ids + row * TOP_K + k).to(tl.int64)
        for chunk in tl.static_range(num_chunks):
            places = channel_rows + expert * (WIDTH * INNER) + chunk * CHUNK
            if INNER % CHUNK == 0:
                tile = tl.load(places, eviction_policy="evict_first")
            else:
                inside = (chunk * CHUNK + columns < INNER)[None, :]
                tile = tl.load(places, mask=inside, other=0.0, eviction_policy="evict_first")
            tiles = tiles + (tile,)  # type: ignore[assignment] # noqa: RUF005
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for k in tl.static_range(TOP_K):
        pair = row * TOP_K + k
        products = tl.zeros((BLOCK_CHANNELS, CHUNK), tl.float32)
        for chunk in tl.static_range(num_chunks):
            offsets = chunk * CHUNK + columns
            value = tl.load(inner + pair * INNER + offsets, mask=offsets < INNER, other=0.0).to(tl.float32)
            products += tiles[k * num_chunks + chunk].to(tl.float32) * value[None, :]
        total += tl.load(weights + pair) * tl.sum(products, 1)
    places = row * WIDTH + channels
    base = tl.load(residual + places, mask=channels < WIDTH, other=0.0)
    total = total.to(base.dtype).to(tl.float32) + base.to(tl.float32)
    tl.store(out + places, total.to(base.dtype), mask=channels < WIDTH)


def gate_up_small(hidden_TD: Tensor, gate_up_E2ID: Tensor, expert_ids_TK: Tensor) -> Tensor:
    """Send each row of a small batch through the first half of its experts.

    Args:
        hidden_TD: The rows, MAX_ROWS at most.
        gate_up_E2ID: Per expert, gate over up.
        expert_ids_TK: Which experts, distinct in a row.

    Returns:
        ``silu(gate) * up`` per pair, [P, I].
    """
    assert hidden_TD.shape[0] <= MAX_ROWS and hidden_TD.stride(1) == 1
    assert gate_up_E2ID.is_contiguous() and expert_ids_TK.is_contiguous()
    (_, twice_inner, width), num_pairs = gate_up_E2ID.shape, expert_ids_TK.numel()
    inner, top_k, device = twice_inner // 2, expert_ids_TK.shape[1], hidden_TD.device
    inner_PI = hidden_TD.new_empty(num_pairs, inner)
    channels, num_warps = _GATE_UP_BLOCK
    _gate_up_kernel[(num_pairs * num_tiles(inner, channels),)](
        hidden_TD, gate_up_E2ID, expert_ids_TK, inner_PI, num_pairs, hidden_TD.stride(0),
        WIDTH=width, INNER=inner, TOP_K=top_k, ALL_PAIRS=power_of_2(MAX_ROWS * top_k),
        BLOCK_CHANNELS=channels, BLOCK_WIDTH=power_of_2(width),
        DEPENDENT=is_dependent(device), num_warps=num_warps, **launch_options(device),
    )  # fmt: skip
    return inner_PI


def gate_up_small_reference(hidden_TD: Tensor, gate_up_E2ID: Tensor, expert_ids_TK: Tensor) -> Tensor:
    """``gate_up_small`` in plain torch."""
    gate_up_TK2ID = gate_up_E2ID[expert_ids_TK.long()].float()
    gate, up = torch.einsum("tkod,td->tko", gate_up_TK2ID, hidden_TD.float()).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).flatten(0, 1).to(hidden_TD.dtype)


def down_small(
    inner_PI: Tensor, down_EDI: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, residual_TD: Tensor
) -> Tensor:
    """Send each pair through the second half of its expert, and add the rows' outputs to the residual stream.

    The experts' numbers are read before the kernel waits for the one before it: that must have been
    ``gate_up_small``, or another that did not write them.

    Args:
        inner_PI: What ``gate_up_small`` gave.
        down_EDI: Per expert, down.
        expert_ids_TK: Which experts.
        weights_TK: float32, their shares in the row's output.
        residual_TD: The stream.

    Returns:
        The sum, [T, D].
    """
    assert inner_PI.is_contiguous() and down_EDI.is_contiguous() and expert_ids_TK.is_contiguous()
    assert weights_TK.is_contiguous() and residual_TD.is_contiguous()
    (_, width, inner), (num_rows, top_k) = down_EDI.shape, expert_ids_TK.shape
    device = inner_PI.device
    out_TD = torch.empty_like(residual_TD)
    is_wide = inner % _CHUNK == 0 and inner_PI.dtype != torch.float32
    channels, num_warps = _DOWN_BLOCK if is_wide else (4, 4)
    limit = {"maxnreg": 128} if is_wide and is_nvidia(device) else {}
    _down_kernel[(num_rows, num_tiles(width, channels))](
        inner_PI, down_EDI, expert_ids_TK, weights_TK, residual_TD, out_TD,
        WIDTH=width, INNER=inner, TOP_K=top_k, BLOCK_CHANNELS=channels,
        CHUNK=_CHUNK if inner % _CHUNK == 0 else power_of_2(inner),
        DEPENDENT=is_dependent(device), num_warps=num_warps, **limit, **launch_options(device),
    )  # fmt: skip
    return out_TD


def down_small_reference(
    inner_PI: Tensor, down_EDI: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, residual_TD: Tensor
) -> Tensor:
    """``down_small`` in plain torch."""
    (num_rows, top_k), down_TKDI = expert_ids_TK.shape, down_EDI[expert_ids_TK.long()].float()
    outputs_TKD = torch.einsum("tkdi,tki->tkd", down_TKDI, inner_PI.view(num_rows, top_k, -1).float())
    sum_TD = (outputs_TKD * weights_TK.unsqueeze(-1)).sum(1)
    return sum_TD.to(residual_TD.dtype) + residual_TD
