"""Greedy answers of many questions at once, straight through the served Thinker: no queue, no workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.thinker import Thinker
from thinkstream_model.tokenizer import Tokenizer

BLOCK_SIZE = 16


def answer_greedily(
    thinker: Thinker, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], *, max_tokens: int = 400
) -> list[list[int]]:
    """Decode all prompts side by side until each has ended.

    Args:
        thinker: The Thinker that is to be judged.
        tokenizer: Says which ids end a text and which rows are padding.
        prompts: Token ids, none empty.
        max_tokens: Where an answer that does not end is cut.

    Returns:
        The ids of each answer, without the one that ended it.
    """
    longest = max(map(len, prompts)) + max_tokens
    num_blocks = -(-longest // BLOCK_SIZE)
    kv = KVCache.allocate(
        thinker.config,
        num_blocks=num_blocks * len(prompts),
        block_size=BLOCK_SIZE,
        dtype=thinker.dtype,
        device=thinker.device,
    )
    tokens = [list(prompt) for prompt in prompts]
    cached = [0] * len(prompts)
    running = list(range(len(prompts)))
    while running:
        inputs = _inputs(tokens, cached, running, num_blocks, thinker.device)
        logits_SV = thinker.forward(inputs, kv)[:, : tokenizer.num_ids]
        still: list[int] = []
        best: list[int] = logits_SV.argmax(-1).tolist()  # pyright: ignore[reportUnknownVariableType]
        for sequence, token in zip(running, best, strict=True):
            cached[sequence] = len(tokens[sequence])
            if token in tokenizer.eos_token_ids:
                continue
            tokens[sequence].append(token)
            if len(tokens[sequence]) < len(prompts[sequence]) + max_tokens:
                still.append(sequence)
        running = still
    return [ids[len(prompt) :] for ids, prompt in zip(tokens, prompts, strict=True)]


def _inputs(
    tokens: list[list[int]], cached: list[int], running: list[int], num_blocks: int, device: torch.device
) -> StepInputs:
    """Lay out the tokens that are not cached yet; sequence ``i`` owns the ``i``-th run of blocks."""
    new = [tokens[sequence][cached[sequence] :] for sequence in running]
    positions = [range(cached[sequence], len(tokens[sequence])) for sequence in running]
    lengths = torch.tensor([len(ids) for ids in new])
    ends = lengths.cumsum(0)
    first_slots = [sequence * num_blocks * BLOCK_SIZE for sequence in running]
    slots = [first + place for first, places in zip(first_slots, positions, strict=True) for place in places]
    context_lens = tuple(len(tokens[sequence]) for sequence in running)
    return StepInputs(
        input_ids_T=torch.tensor([token for ids in new for token in ids], device=device),
        positions_T=torch.tensor([place for places in positions for place in places], device=device),
        slot_mapping_T=torch.tensor(slots, device=device),
        cu_seqlens_q_B1=torch.cat((torch.zeros(1, dtype=torch.int64), ends)).to(device, torch.int32),
        context_lens_B=torch.tensor(context_lens, dtype=torch.int32, device=device),
        block_tables_BM=torch.stack(
            [torch.arange(num_blocks, dtype=torch.int32) + sequence * num_blocks for sequence in running]
        ).to(device),
        output_rows_S=(ends - 1).to(device),
        query_lens=tuple(len(ids) for ids in new),
        context_lens=context_lens,
    )
