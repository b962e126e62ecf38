"""Sequences in a paged cache, stepped by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.thinker import Thinker

BLOCK_SIZE = 16


class Paged:
    """Sequences by number, each with a scattered block table; a step is a list of (sequence, ids)."""

    def __init__(
        self, thinker: Thinker, num_sequences: int, *, seed: int = 0, blocks_per_sequence: int = 16
    ) -> None:
        self.thinker = thinker
        num_blocks = num_sequences * blocks_per_sequence
        self.kv = KVCache.allocate(
            thinker.config,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            dtype=thinker.dtype,
            device=thinker.device,
        )
        blocks = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))
        self.tables = blocks.view(num_sequences, blocks_per_sequence)
        self.lengths = [0] * num_sequences

    def inputs(self, step: Sequence[tuple[int, Sequence[int]]]) -> StepInputs:
        """The step's tensors, all rows wanted; the sequences grow by it."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for sequence, new_ids in step:
            start = self.lengths[sequence]
            self.lengths[sequence] += len(new_ids)
            for position in range(start, start + len(new_ids)):
                block = int(self.tables[sequence, position // BLOCK_SIZE])
                slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
                positions.append(position)
            ids.extend(new_ids)
        query_lens = tuple(len(new_ids) for _, new_ids in step)
        context_lens = tuple(self.lengths[sequence] for sequence, _ in step)
        num_blocks = -(-max(context_lens) // BLOCK_SIZE)
        device = self.thinker.device
        return StepInputs(
            input_ids_T=torch.tensor(ids, device=device),
            positions_T=torch.tensor(positions, device=device),
            slot_mapping_T=torch.tensor(slots, device=device),
            cu_seqlens_q_B1=torch.tensor([0, *query_lens], device=device).cumsum(0).int(),
            context_lens_B=torch.tensor(context_lens, dtype=torch.int32, device=device),
            block_tables_BM=self.tables[[s for s, _ in step], :num_blocks].int().to(device),
            output_rows_S=torch.arange(len(ids), device=device),
            query_lens=query_lens,
            context_lens=context_lens,
        )

    def step(self, step: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
        """Logits of all tokens, one tensor per sequence of the step."""
        inputs = self.inputs(step)
        logits = self.thinker.forward(inputs, self.kv)
        return list(torch.split(logits, list(inputs.query_lens)))

    def greedy(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """Decode all prompts together."""
        inputs = self.inputs(list(enumerate(prompts)))
        texts: list[list[int]] = [[] for _ in prompts]
        for turn in range(num_tokens):
            last_rows = inputs.cu_seqlens_q_B1[1:].long() - 1
            logits = self.thinker.forward(replace(inputs, output_rows_S=last_rows), self.kv)
            for text, token_id in zip(texts, logits.argmax(-1), strict=True):
                text.append(int(token_id))
            if turn + 1 < num_tokens:
                inputs = self.inputs([(n, text[-1:]) for n, text in enumerate(texts)])
        return texts
