"""A batch laid out as arrays, under the names of the model's own fields; the runner sends them on.

Each step pays for this on the host while the device waits, so whatever grows with tokens or blocks is
left to numpy.

T tokens of the step, B sequences, M blocks in the longest block table, S rows whose logits are wanted,
L ids of the longest text, K ids with a bias. Fields of the sampler call the S rows B.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .batch import Batch
from .sequence import SAMPLING_RECORD, Sequence

Array = npt.NDArray[Any]


class StepLengths(NamedTuple):
    """What the host knows of a step; see ``StepInputs``, whose fields these are."""

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    has_padding: bool = False


class SamplingHints(NamedTuple):
    """What the host knows of how a step samples, to spare work; see ``SamplingInputs``."""

    num_logprobs: int = 0
    greedy: bool = False
    unfiltered: bool = False
    max_top_k: int = 0


def input_arrays(batch: Batch, block_size: int) -> dict[str, Array]:
    """Returns the tensors of ``StepInputs``; placeholders stand as they are among the ids."""
    context_lens_B = np.array(batch.context_lens, dtype=np.int64)
    query_lens_B = np.array(batch.query_lens, dtype=np.int64)
    starts_B = context_lens_B - query_lens_B
    cu_seqlens_B1 = np.concatenate(([0], query_lens_B.cumsum()))
    tables_BM = _block_tables(batch, context_lens_B, block_size)
    spans = zip(batch.sequences, starts_B.tolist(), batch.context_lens, strict=True)
    input_ids = b"".join([sequence.token_ids[start:end] for sequence, start, end in spans])

    rows_T = np.arange(len(query_lens_B)).repeat(query_lens_B)
    positions_T = np.arange(len(rows_T)) + (starts_B - cu_seqlens_B1[:-1])[rows_T]
    blocks_T = tables_BM[rows_T, positions_T // block_size].astype(np.int64)
    wanted_B = context_lens_B == [len(sequence.token_ids) for sequence in batch.sequences]
    return {
        "input_ids_T": np.frombuffer(input_ids, dtype=np.int64),
        "positions_T": positions_T,
        "slot_mapping_T": blocks_T * block_size + positions_T % block_size,
        "output_rows_S": cu_seqlens_B1[1:][wanted_B] - 1,
        "cu_seqlens_q_B1": cu_seqlens_B1.astype(np.int32),
        "context_lens_B": context_lens_B.astype(np.int32),
        "block_tables_BM": tables_BM,
    }


def sampling_arrays(batch: Batch) -> dict[str, Array]:
    """Returns the tensors of ``SamplingInputs``, and of ``SamplingExtras`` where any row has some.

    None for a step in which no sequence gets a token.
    """
    if not batch.sampled:
        return {}
    records_B = np.frombuffer(
        b"".join([sequence.sampling_record for sequence in batch.sampled]), dtype=SAMPLING_RECORD
    )
    assert SAMPLING_RECORD.names is not None
    arrays: dict[str, Array] = {name: np.ascontiguousarray(records_B[name]) for name in SAMPLING_RECORD.names}
    num_prompt_tokens = [sequence.num_prompt_tokens for sequence in batch.sampled]
    arrays["index_B"] = np.array(batch.places, dtype=np.int64) - num_prompt_tokens + 1
    if any(sequence.has_extras for sequence in batch.sampled):
        arrays |= _extras_arrays(batch.sampled)
    return arrays


def sampling_hints(batch: Batch, arrays: Mapping[str, Array]) -> SamplingHints:
    """Returns what a step's ``sampling_arrays`` have in common."""
    if not batch.sampled:
        return SamplingHints()
    top_k_B = arrays["top_k_B"]
    is_filtered = top_k_B.any() or arrays["min_p_B"].any() or (arrays["top_p_B"] < 1.0).any()
    return SamplingHints(
        num_logprobs=max([sequence.num_logprobs for sequence in batch.sampled]),
        greedy=not arrays["temperature_B"].any(),
        unfiltered=not is_filtered,
        max_top_k=int(top_k_B.max()) if top_k_B.all() else 0,
    )


def _extras_arrays(sequences: tuple[Sequence, ...]) -> dict[str, Array]:
    """Rows that want none get values that change nothing."""
    samplings = [sequence.sampling for sequence in sequences]
    # Texts are only looked at for penalties, so the others' are not copied.
    texts = [sequence if sequence.has_penalties else None for sequence in sequences]
    prompts = [text.token_ids[: text.num_prompt_tokens] if text else array("q") for text in texts]
    outputs = [text.token_ids[text.num_prompt_tokens :] if text else array("q") for text in texts]
    biases: list[Mapping[int, float]] = [s.logit_bias for s in samplings]
    return {
        "prompt_ids_BL": _padded(prompts, -1, np.int64),
        "output_ids_BL": _padded(outputs, -1, np.int64),
        "bias_ids_BK": _padded([array("q", bias.keys()) for bias in biases], -1, np.int64),
        "bias_values_BK": _padded([array("f", bias.values()) for bias in biases], 0, np.float32),
        "repetition_B": np.array([s.repetition_penalty for s in samplings], dtype=np.float32),
        "presence_B": np.array([s.presence_penalty for s in samplings], dtype=np.float32),
        "frequency_B": np.array([s.frequency_penalty for s in samplings], dtype=np.float32),
    }


def _block_tables(batch: Batch, context_lens_B: Array, block_size: int) -> Array:
    """The blocks in use, not those held for tokens to come, padded with 0."""
    num_blocks_B = -(-context_lens_B // block_size)
    used = zip(batch.sequences, num_blocks_B.tolist(), strict=True)
    flat = b"".join([sequence.block_table[:num_blocks] for sequence, num_blocks in used])
    tables_BM = np.zeros((len(num_blocks_B), int(num_blocks_B.max())), dtype=np.int32)
    tables_BM[np.arange(tables_BM.shape[1]) < num_blocks_B[:, None]] = np.frombuffer(flat, dtype=np.int32)
    return tables_BM


def _padded(rows: list[array[Any]], padding: int, dtype: npt.DTypeLike) -> Array:
    padded = np.full((len(rows), max(map(len, rows))), padding, dtype=dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
