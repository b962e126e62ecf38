"""Steps of whole prompts, all of one length, on an empty cache."""

from __future__ import annotations

import torch
from torch import Tensor

from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.thinker import Thinker

_BLOCK_SIZE = 16


def whole_prompts(thinker: Thinker, ids_BT: Tensor, *, every_row: bool = False) -> tuple[StepInputs, KVCache]:
    """Lay out a step of prompts.

    Args:
        thinker: Whose step it is.
        ids_BT: Their tokens.
        every_row: Whether the logits of all tokens are wanted, and not of each prompt's last alone.

    Returns:
        The step, and a cache that has room for it.
    """
    (num_prompts, num_tokens), device = ids_BT.shape, thinker.device
    blocks_each = -(-num_tokens // _BLOCK_SIZE)
    kv = KVCache.allocate(
        thinker.config,
        num_blocks=num_prompts * blocks_each,
        block_size=_BLOCK_SIZE,
        dtype=thinker.dtype,
        device=device,
    )
    place_T = torch.arange(num_tokens, device=device)
    prompt_B = torch.arange(num_prompts, device=device)
    slots_BT = prompt_B[:, None] * (blocks_each * _BLOCK_SIZE) + place_T
    last_B = (prompt_B + 1) * num_tokens - 1
    inputs = StepInputs(
        input_ids_T=ids_BT.flatten(),
        positions_T=place_T.repeat(num_prompts),
        slot_mapping_T=slots_BT.flatten(),
        cu_seqlens_q_B1=torch.arange(num_prompts + 1, dtype=torch.int32, device=device) * num_tokens,
        context_lens_B=torch.full((num_prompts,), num_tokens, dtype=torch.int32, device=device),
        block_tables_BM=torch.arange(kv.num_blocks, dtype=torch.int32, device=device).view(num_prompts, -1),
        output_rows_S=torch.arange(ids_BT.numel(), device=device) if every_row else last_B,
        query_lens=(num_tokens,) * num_prompts,
        context_lens=(num_tokens,) * num_prompts,
    )
    return inputs, kv
