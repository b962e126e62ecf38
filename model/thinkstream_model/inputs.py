"""The tensors of one step, passed and never global.

T tokens of the step, B sequences, M blocks in the longest block table, S rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One batch: prefill chunks and decodes side by side, flattened over tokens.

    Attributes:
        input_ids_T: int64, token ids.
        positions_T: int64, place of each token in its sequence, from 0.
        slot_mapping_T: int64, where each token's keys and values go: block id * block size + offset; -1 for
            a token that only pads a captured step, whose keys and values go nowhere.
        cu_seqlens_q_B1: int32, cumulative numbers of tokens per sequence, from 0 to T.
        context_lens_B: int32, keys that are valid once this step's tokens are written.
        block_tables_BM: int32, block ids of each sequence, padded with 0.
        output_rows_S: int64, rows of T whose logits are wanted.
        query_lens: The sequences' tokens in this step, on the host.
        context_lens: ``context_lens_B`` on the host.
        has_padding: Whether tokens may lie behind those of the last sequence, as in a captured prompt: then
            ``query_lens`` counts them too, ``cu_seqlens_q_B1`` does not, and what comes of them means
            nothing but must be numbers.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    slot_mapping_T: Tensor
    cu_seqlens_q_B1: Tensor
    context_lens_B: Tensor
    block_tables_BM: Tensor
    output_rows_S: Tensor
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    has_padding: bool = False


def count_decodes(query_lens: Sequence[int]) -> int:
    """Sequences of one token, of those that stand before the first with more."""
    return next((row for row, num_tokens in enumerate(query_lens) if num_tokens > 1), len(query_lens))
