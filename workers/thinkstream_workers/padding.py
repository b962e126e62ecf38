"""A step's arrays brought to the size of a bucket.

T tokens, B sequences, M blocks of the longest context, S rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from thinkstream_model.inputs import count_decodes

from .buckets import Bucket
from .step_arrays import Array


def padded_arrays(arrays: Mapping[str, Array], bucket: Bucket, block_size: int) -> dict[str, Array]:
    """Brings the arrays of a step, in which each sequence gets a token, to the size of its bucket.

    What pads is the last decode's token, and the last prompt's, once more, so that it asks for no further
    expert, and it writes nothing. Among decodes it is a sequence of its own, which reads the last one's keys
    again; behind prompts it belongs to no sequence, and a prompt that pads has no tokens.

    Args:
        arrays: Of ``input_arrays``, and of ``sampling_arrays`` where the graph samples.
        bucket: One that holds the step.
        block_size: Tokens of a block.
    """
    query_lens: list[int] = np.diff(arrays["cu_seqlens_q_B1"]).tolist()
    num_decodes = count_decodes(query_lens)
    prompt_lens = query_lens[num_decodes:]
    tokens_T, is_padding_T = _repeated(
        (num_decodes, sum(prompt_lens)), (bucket.num_decodes, bucket.num_prompt_tokens)
    )
    sequences_B, _ = _repeated((num_decodes, len(prompt_lens)), (bucket.num_decodes, bucket.num_prompts))
    prompt_lens += [0] * (bucket.num_prompts - len(prompt_lens))
    rows_S, tables_BM = arrays["output_rows_S"], arrays["block_tables_BM"]
    is_prompt_S = rows_S >= num_decodes
    num_blocks = -(-max(bucket.decode_context, bucket.prompt_context) // block_size)
    padded = {
        "input_ids_T": arrays["input_ids_T"][tokens_T],
        "positions_T": arrays["positions_T"][tokens_T],
        "slot_mapping_T": np.where(is_padding_T, -1, arrays["slot_mapping_T"][tokens_T]),
        "cu_seqlens_q_B1": np.cumsum([0, *[1] * bucket.num_decodes, *prompt_lens], dtype=np.int32),
        "context_lens_B": arrays["context_lens_B"][sequences_B],
        "block_tables_BM": np.pad(tables_BM, ((0, 0), (0, num_blocks - tables_BM.shape[1])))[sequences_B],
    }
    # Whose logits are wanted stands in one piece, and what pads behind it.
    wanted = {"output_rows_S": rows_S + is_prompt_S * (bucket.num_decodes - num_decodes)}
    wanted |= {name: array for name, array in arrays.items() if name not in padded | wanted}
    last_S = np.minimum(np.arange(bucket.num_sequences), len(rows_S) - 1)
    return padded | {name: array[last_S] for name, array in wanted.items()}


def _repeated(counts: tuple[int, int], rooms: tuple[int, int]) -> tuple[Array, Array]:
    """Which element stands where in room for two groups of them, and where it is a group's last one again."""
    first, second = (np.arange(room) for room in rooms)
    elements = np.minimum(first, counts[0] - 1), counts[0] + np.minimum(second, counts[1] - 1)
    return np.concatenate(elements), np.concatenate((first >= counts[0], second >= counts[1]))
