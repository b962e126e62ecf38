"""Which experts each row goes to, and which rows each expert gets.

Two launches. The logits are products of few outputs and great depth, so the depth is cut into parts. Few
rows are too few programs for the device, so each part is a program's; of many rows a program goes through
all of them. Then one program a row adds up, in order, what parts it is left, and picks: both ways come to
the same bits. No sort and no prefix sum gives the experts their lists: a pair takes the next free place of
its expert's. The order of a list is left to chance, and no result depends on it.

T rows, D width, E experts, K experts a row, L pairs of one expert at most, P parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from thinkstream_model.ops import ExpertLists
from thinkstream_model.step_sizes import NUM_ROUTER_PARTS

from . import few_rows
from .launch import dot_precision, is_dependent, launch_options
from .tiles import Tile, dot_rows, fitted, num_tiles, power_of_2

_MAX_SPLIT_ROWS = 1_024
"""Up to so many rows each part is a program's; the bits are the same."""

_LOWEST_KEY = tl.constexpr(-(2**31))


@triton.jit(do_not_specialize=("num_rows",))
def _logits_kernel(
    hidden: tl.tensor,
    router: tl.tensor,
    parts: tl.tensor,
    counts: tl.tensor,
    num_rows: tl.tensor,
    hidden_stride: tl.tensor,
    DEPTH: tl.constexpr,
    PART: tl.constexpr,
    PARTS_EACH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    ALL_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    WITH_LISTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One tile of the logits, [P, T, E], over PARTS_EACH parts of the depth, each summed by itself.

    The first program also sets the counts to zero.
    """
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    first = tl.program_id(1) * PARTS_EACH
    experts = tl.program_id(0) * BLOCK_EXPERTS + tl.arange(0, BLOCK_EXPERTS)
    rows = tl.program_id(2) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    if WITH_LISTS and tl.program_id(0) + first + tl.program_id(2) == 0:
        every = tl.arange(0, ALL_EXPERTS)
        tl.store(counts + every, tl.zeros((ALL_EXPERTS,), tl.int32), mask=every < NUM_EXPERTS)
    router_rows = router + tl.minimum(experts, NUM_EXPERTS - 1) * DEPTH
    hidden_rows = hidden + tl.minimum(rows, num_rows - 1).to(tl.int64) * hidden_stride
    if PARTS_EACH == 1:
        depth = tl.minimum(PART, DEPTH - first * PART)
        total = dot_rows(router_rows + first * PART, hidden_rows + first * PART, depth,
                         BLOCK_EXPERTS, BLOCK_ROWS, BLOCK_K, EVEN_K, PRECISION, STAGES)  # fmt: skip
    else:
        total = tl.zeros((BLOCK_EXPERTS, BLOCK_ROWS), tl.float32)
        for part in range(first, first + PARTS_EACH):
            # Not known to the compiler: it would make a part of one step an addition to the sum so far.
            depth = tl.minimum(PART, DEPTH - part * PART)
            total += dot_rows(router_rows + part * PART, hidden_rows + part * PART, depth,
                              BLOCK_EXPERTS, BLOCK_ROWS, BLOCK_K, EVEN_K, PRECISION, STAGES)  # fmt: skip
    places = parts + (tl.program_id(1) * num_rows + rows[None, :]) * NUM_EXPERTS + experts[:, None]
    tl.store(places, total, mask=(experts < NUM_EXPERTS)[:, None] & (rows < num_rows)[None, :])


@triton.jit(do_not_specialize=("num_rows", "list_length"))
def _pick_kernel(
    parts: tl.tensor,
    expert_ids: tl.tensor,
    weights: tl.tensor,
    counts: tl.tensor,
    pairs: tl.tensor,
    num_rows: tl.tensor,
    list_length: tl.tensor,
    NUM_PARTS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    ALL_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    WITH_LISTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Choose one row's experts and enter it in their lists."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    experts = tl.arange(0, ALL_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    logits = tl.zeros((ALL_EXPERTS,), tl.float32)
    for part in tl.static_range(NUM_PARTS):
        place = parts + (part * num_rows + row) * NUM_EXPERTS
        logits += tl.load(place + experts, mask=is_expert, other=0.0)
    logits = tl.where(is_expert, logits, float("-inf"))
    shares = tl.exp(logits - tl.max(logits, 0))
    ranks = _rank(logits, experts, is_expert, ALL_EXPERTS, TOP_K)
    # Added up one by one, in the order of k; the sum over all would cancel out where they are scaled to 1.
    # Each is alone among zeros, so that its bits can be added up as integers, which is one instruction.
    total = 0.0
    if RENORMALIZE:
        bits = shares.to(tl.int32, bitcast=True)
        for k in tl.static_range(TOP_K):
            total += tl.sum(tl.where(ranks == k, bits, 0), 0).to(tl.float32, bitcast=True)
    else:
        total = tl.sum(shares, 0)
    is_chosen = ranks < TOP_K
    chosen = row * TOP_K + ranks
    tl.store(expert_ids + chosen, experts, mask=is_chosen)
    tl.store(weights + chosen, shares / total, mask=is_chosen)
    if WITH_LISTS:
        place = tl.atomic_add(counts + experts, 1, mask=is_chosen, sem="relaxed")
        tl.store(pairs + experts * list_length + place, chosen, mask=is_chosen)


@triton.jit
def _rank(
    logits: tl.tensor,
    experts: tl.tensor,
    is_expert: tl.tensor,
    ALL_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
) -> tl.tensor:
    """Rank of each expert among the top k, TOP_K for the others.

    Compared as integers that sort like the logits, for whose extremes the device has an instruction; of
    equals the lower expert is first. NaN sorts as an extreme like any other: however broken a row is, its
    experts exist and are distinct.
    """
    bits = logits.to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ranks = tl.full((ALL_EXPERTS,), TOP_K, tl.int32)
    for k in tl.static_range(TOP_K):
        is_left = is_expert & (ranks == TOP_K)
        top = tl.max(tl.where(is_left, keys, _LOWEST_KEY), 0)
        first = tl.min(tl.where(is_left & (keys == top), experts, ALL_EXPERTS), 0)
        ranks = tl.where(experts == first, k, ranks)
    return ranks


@triton.jit(do_not_specialize=("num_pairs", "list_length"))
def _lists_kernel(
    slots: tl.tensor,
    counts: tl.tensor,
    pairs: tl.tensor,
    num_pairs: tl.tensor,
    list_length: tl.tensor,
    NUM_SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """Enter pairs in the lists of their slots."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
    is_here = (slot >= 0) & (slot < NUM_SLOTS)
    place = tl.atomic_add(counts + slot, 1, mask=is_here, sem="relaxed")
    tl.store(pairs + slot.to(tl.int64) * list_length + place, pair, mask=is_here)


def route(
    hidden_TD: Tensor, router_ED: Tensor, top_k: int, *, renormalize: bool, with_lists: bool
) -> tuple[Tensor, Tensor, ExpertLists | None]:
    """Softmax over all experts in float32, the top k of it.

    Args:
        hidden_TD: The rows.
        router_ED: One row per expert.
        top_k: How many experts a row goes to.
        renormalize: Whether the chosen shares are scaled to sum to 1.
        with_lists: Whether to make the experts' lists beside.

    Returns:
        The experts, int32 [T, K], the most likely first and of equals the lower number; their shares,
        float32 [T, K]; the lists, of length T.
    """
    assert hidden_TD.stride(1) == 1 and router_ED.is_contiguous()
    (num_rows, depth), num_experts = hidden_TD.shape, router_ED.shape[0]
    expert_ids_TK = hidden_TD.new_empty(num_rows, top_k, dtype=torch.int32)
    weights_TK = hidden_TD.new_empty(num_rows, top_k, dtype=torch.float32)
    lists = None
    if with_lists:
        pairs_EL = hidden_TD.new_empty(num_experts, num_rows, dtype=torch.int32)
        lists = ExpertLists(hidden_TD.new_empty(num_experts, dtype=torch.int32), pairs_EL)
    num_parts = NUM_ROUTER_PARTS if num_rows <= _MAX_SPLIT_ROWS else 1
    parts_PTE = hidden_TD.new_empty(num_parts, num_rows, num_experts, dtype=torch.float32)
    part = num_tiles(depth, 16 * NUM_ROUTER_PARTS) * 16
    tile = fitted(_tile(num_rows), hidden_TD.dtype)
    grid = (num_tiles(num_experts, tile.channels), num_parts, num_tiles(num_rows, tile.rows))
    all_experts, device = power_of_2(num_experts), hidden_TD.device
    # Hopper's own kernel for a few rows does not set the counts to zero.
    if with_lists or not few_rows.try_multiply(hidden_TD, router_ED, parts_PTE):
        _logits_kernel[grid](
            hidden_TD, router_ED, parts_PTE, lists and lists.counts_E, num_rows, hidden_TD.stride(0),
            DEPTH=depth, PART=part, PARTS_EACH=NUM_ROUTER_PARTS // num_parts,
            NUM_EXPERTS=num_experts, ALL_EXPERTS=all_experts,
            BLOCK_EXPERTS=tile.channels, BLOCK_ROWS=tile.rows, BLOCK_K=tile.depth,
            EVEN_K=part % tile.depth == 0 and part * NUM_ROUTER_PARTS == depth,
            PRECISION=dot_precision(hidden_TD.dtype), STAGES=tile.num_stages, WITH_LISTS=with_lists,
            DEPENDENT=is_dependent(device), num_warps=tile.num_warps, **launch_options(device),
        )  # fmt: skip
    _pick_kernel[(num_rows,)](
        parts_PTE, expert_ids_TK, weights_TK, lists and lists.counts_E, lists and lists.pairs_EL,
        num_rows, num_rows,
        NUM_PARTS=num_parts, NUM_EXPERTS=num_experts, ALL_EXPERTS=all_experts, TOP_K=top_k,
        RENORMALIZE=renormalize, WITH_LISTS=with_lists,
        DEPENDENT=is_dependent(device), num_warps=1, **launch_options(device),
    )  # fmt: skip
    return expert_ids_TK, weights_TK, lists


def route_reference(
    hidden_TD: Tensor, router_ED: Tensor, top_k: int, *, renormalize: bool, with_lists: bool
) -> tuple[Tensor, Tensor, ExpertLists | None]:
    """``route`` in plain torch."""
    logits_TE = hidden_TD.float() @ router_ED.float().t()
    order_TE = logits_TE.sort(dim=-1, descending=True, stable=True).indices
    expert_ids_TK = order_TE[:, :top_k]
    weights_TK = logits_TE.softmax(-1).gather(1, expert_ids_TK)
    if renormalize:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    lists = lists_of_reference(expert_ids_TK, router_ED.shape[0]) if with_lists else None
    return expert_ids_TK.int(), weights_TK, lists


def lists_of(slots_TK: Tensor, num_slots: int) -> ExpertLists:
    """Make the experts' lists from slots that are given.

    Args:
        slots_TK: Integers; what is not in [0, num_slots) is entered nowhere.
        num_slots: How many lists.

    Returns:
        The lists, each long enough for all pairs.
    """
    assert slots_TK.is_contiguous()
    num_pairs, block, device = slots_TK.numel(), 256, slots_TK.device
    counts_E = torch.zeros(num_slots, dtype=torch.int32, device=device)
    pairs_EL = torch.empty(num_slots, num_pairs, dtype=torch.int32, device=device)
    _lists_kernel[(num_tiles(num_pairs, block),)](
        slots_TK, counts_E, pairs_EL, num_pairs, num_pairs, NUM_SLOTS=num_slots, BLOCK=block,
        DEPENDENT=is_dependent(device), num_warps=4, **launch_options(device),
    )  # fmt: skip
    return ExpertLists(counts_E, pairs_EL)


def lists_of_reference(slots_TK: Tensor, num_slots: int) -> ExpertLists:
    """``lists_of`` in plain torch; ``-1`` is behind each list's end."""
    slots_P = slots_TK.flatten()
    pairs_EL = torch.full((num_slots, len(slots_P)), -1, dtype=torch.int32, device=slots_TK.device)
    counts_E = torch.zeros(num_slots, dtype=torch.int32, device=slots_TK.device)
    for slot in range(num_slots):
        pairs = (slots_P == slot).nonzero().flatten()
        counts_E[slot] = len(pairs)
        pairs_EL[slot, : len(pairs)] = pairs.int()
    return ExpertLists(counts_E, pairs_EL)


def _tile(num_rows: int) -> Tile:
    """As measured for the logits of 128 experts on an H100; the depth of a part is 256 there."""
    return Tile(16 if num_rows <= 16 else 32 if num_rows <= 32 else 64, 64, 128, num_warps=4, num_stages=3)
