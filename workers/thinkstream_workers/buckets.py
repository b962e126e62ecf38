"""Steps of any size brought to few sizes, so that what was captured for one replays for others.

T tokens of the bucket, B sequences, M blocks of its longest context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from .step_arrays import Array, StepLengths

MAX_PROMPT_TOKENS = 512
"""Tokens of a prompt that still gets a graph; longer ones keep the device busy while the host launches."""
_PROMPT_TOKENS = 64
"""Prompts' buckets are multiples of it."""

_ROWS: tuple[int, ...] = (
    *range(1, 9),
    *range(10, 17, 2),
    *range(20, 33, 4),
    *range(40, 65, 8),
    *range(80, 129, 16),
)
_CONTEXT_TOKENS = 256
"""The least context of a decode's bucket, doubled from one to the next; a split of the attention kernels.

Wider steps would be fewer buckets, but each row and key head has a program for every split of the bucket's
context. One that finds no keys still takes its turn, and many of them rule out the kernel for few.
"""

Sampling = Literal["filtered", "unfiltered", "none"]
"""What a graph does behind the logits: sample, with filters or without; or leave it to who replays it."""


class Bucket(NamedTuple):
    """What steps have in common that replay one graph.

    Attributes:
        num_tokens: Tokens of all sequences, padding included.
        num_sequences: As many as tokens where each decodes one, else 1.
        max_context: Keys of the longest sequence at most.
        sampling: How far the graph goes.
    """

    num_tokens: int
    num_sequences: int
    max_context: int
    sampling: Sampling

    @classmethod
    def of(
        cls, num_tokens: int, num_sequences: int, max_context: int, sampling: Sampling, *, longest: int
    ) -> Bucket:
        """The smallest one that holds a step.

        Args:
            num_tokens: Tokens of the step.
            num_sequences: Its sequences.
            max_context: Keys of the longest of them.
            sampling: How far its graph goes.
            longest: Keys that any sequence may have.
        """
        if num_tokens > num_sequences:
            # A prompt's attention does not follow from the bucket's context: one does for all.
            return cls(-(-num_tokens // _PROMPT_TOKENS) * _PROMPT_TOKENS, 1, longest, sampling)
        num_rows = bucket_rows(num_tokens)
        context = _CONTEXT_TOKENS
        while context < max_context:
            context *= 2
        return cls(num_rows, num_rows, min(context, longest), sampling)

    @property
    def is_decode(self) -> bool:
        """Whether each sequence has one token."""
        return self.num_tokens == self.num_sequences

    @property
    def lengths(self) -> StepLengths:
        """What the kernels are launched for."""
        return StepLengths(
            query_lens=(self.num_tokens // self.num_sequences,) * self.num_sequences,
            context_lens=(self.max_context,) * self.num_sequences,
            has_padding=not self.is_decode,
        )


def padded_arrays(arrays: Mapping[str, Array], bucket: Bucket, block_size: int) -> dict[str, Array]:
    """Brings a step's arrays to the size of its bucket.

    What pads is the step's last token once more, so that it asks for no further expert, and it writes
    nothing. In a decode it is a sequence of its own, which reads the last one's keys again. Behind a prompt
    it belongs to no sequence.
    """
    sizes = {
        "T": bucket.num_tokens,
        "B": bucket.num_sequences,
        "BM": bucket.num_sequences,
        "S": bucket.num_sequences,
    }
    padded = {
        name: _repeat_last(array, sizes.get(name.rpartition("_")[2], len(array)))
        for name, array in arrays.items()
    }
    padded["slot_mapping_T"][len(arrays["slot_mapping_T"]) :] = -1
    if bucket.is_decode:
        padded["cu_seqlens_q_B1"] = np.arange(bucket.num_sequences + 1, dtype=np.int32)
    tables_BM = padded["block_tables_BM"]
    num_blocks = -(-bucket.max_context // block_size)
    padded["block_tables_BM"] = np.pad(tables_BM, ((0, 0), (0, num_blocks - tables_BM.shape[1])))
    return padded


def _repeat_last(array: Array, length: int) -> Array:
    return array[np.minimum(np.arange(length), len(array) - 1)]


def prompt_buckets() -> range:
    """Tokens of the buckets of prompts."""
    return range(_PROMPT_TOKENS, MAX_PROMPT_TOKENS + 1, _PROMPT_TOKENS)


def bucket_rows(num_rows: int) -> int:
    """Rows of the smallest bucket that holds so many: exact up to 8, within a quarter beyond."""
    for rows in _ROWS:
        if rows >= num_rows:
            return rows
    return (num_rows + 31) // 32 * 32
