"""Steps of every size that a replica meets, run dry so that their kernels are compiled before the first job.

A step that compiled while jobs wait might outlast the lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .inputs import StepInputs
from .kv_cache import KVCache
from .ops import Ops
from .parameters import ThinkerWeights
from .sampler import SamplingInputs
from .step_sizes import PROMPT_STEP, SPLIT_KEYS, doubling
from .thinker import Thinker

_LONG_CONTEXT = 4_096
"""Beyond, rows have no kernel that neither one row has, nor the most rows with the longest context."""
_LONG_PROMPT = 1_024


def compile_steps(
    weights: ThinkerWeights,
    ops: Ops,
    *,
    num_valid_ids: int,
    block_size: int,
    sequence_counts: Sequence[int],
    max_tokens: int,
    max_context: int,
) -> int:
    """Compile the kernels of all steps within the limits, side by side, where the operations have any.

    None of ours is launched and no weight is looked at, so they need not have been read.

    Args:
        weights: The model's, on their device.
        ops: Its operations.
        num_valid_ids: Ids that may be sampled.
        block_size: Tokens of a block of the cache.
        sequence_counts: Numbers of sequences that a step may have, padding included.
        max_tokens: Tokens of a step, padding included.
        max_context: Keys of a sequence.

    Returns:
        How many kernels were not ready.
    """
    if not ops.is_capturable:
        return 0
    from .kernels.ahead import compile_ahead

    steps = _DrySteps(weights, ops, num_valid_ids, block_size)

    def run() -> None:
        most = max(sequence_counts)
        steps.run((1,) * most, max_context)  # the most to do, and first: the others find its memory
        for num_rows in sequence_counts:  # which alone decide how logits are made
            steps.run((1,) * num_rows, SPLIT_KEYS)
        for num_rows in doubling(1, most):
            for context in doubling(SPLIT_KEYS, max_context):
                if num_rows == 1 or context <= _LONG_CONTEXT:
                    steps.run((1,) * num_rows, context)
            steps.run((2,) * num_rows, 2)
        short = range(PROMPT_STEP, min(_LONG_PROMPT, max_tokens), PROMPT_STEP)
        for num_tokens in (*short, *doubling(_LONG_PROMPT, max_tokens)):
            steps.run((min(num_tokens, max_tokens),), max_context)

    num_kernels = compile_ahead(run)
    if weights.embedding_VD.device.type == "cuda":
        torch.cuda.empty_cache()  # what the largest step would need is not yet the engine's
    return num_kernels


class _DrySteps:
    """Steps of zeros through one layer of each kind."""

    def __init__(self, weights: ThinkerWeights, ops: Ops, num_valid_ids: int, block_size: int) -> None:
        layers = tuple({type(layer.mlp): layer for layer in weights.layers}.values())
        self._thinker = Thinker(replace(weights, layers=layers), ops)
        self._kv = KVCache.allocate(
            weights.config,
            num_blocks=1,
            block_size=block_size,
            dtype=self._thinker.dtype,
            device=self._thinker.device,
        )
        self._num_valid_ids = num_valid_ids

    def run(self, query_lens: tuple[int, ...], context: int) -> None:
        """A step of so many new tokens per sequence, filtered and not."""
        logits_BV = self._thinker.forward(self._inputs(query_lens, context), self._kv)
        for unfiltered in (True, False):
            sampling = self._sampling(len(query_lens), unfiltered)
            self._thinker.sample(logits_BV, sampling, num_valid_ids=self._num_valid_ids)

    def _inputs(self, query_lens: tuple[int, ...], context: int) -> StepInputs:
        num_tokens, num_rows = sum(query_lens), len(query_lens)
        return StepInputs(
            input_ids_T=self._zeros(num_tokens),
            positions_T=self._zeros(num_tokens),
            slot_mapping_T=self._zeros(num_tokens),
            cu_seqlens_q_B1=self._zeros(num_rows + 1, dtype=torch.int32),
            context_lens_B=self._zeros(num_rows, dtype=torch.int32),
            block_tables_BM=self._zeros(num_rows, -(-context // self._kv.block_size), dtype=torch.int32),
            output_rows_S=self._zeros(num_rows),
            query_lens=query_lens,
            context_lens=(context,) * num_rows,
        )

    def _sampling(self, num_rows: int, unfiltered: bool) -> SamplingInputs:
        return SamplingInputs(
            temperature_B=self._zeros(num_rows, dtype=torch.float32),
            top_p_B=self._zeros(num_rows, dtype=torch.float32),
            top_k_B=self._zeros(num_rows),
            min_p_B=self._zeros(num_rows, dtype=torch.float32),
            seed_B=self._zeros(num_rows),
            index_B=self._zeros(num_rows),
            unfiltered=unfiltered,
        )

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._thinker.device)
