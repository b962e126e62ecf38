"""Whole steps as CUDA graphs, one per bucket of sizes, captured as they are met.

A step is some five hundred small launches, more than a host can make in the time that the device needs for
a decode or a short prompt. A graph makes them one. It replays over fixed memory, so a step's arrays are
brought to the size of their bucket and copied there in one piece.

Two kinds of steps have graphs: decodes, with one token per sequence, and the whole of one short prompt.

T tokens of the bucket, B sequences, M blocks of its longest context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .packing import pack, unpack
from .step_arrays import Array

_ROWS: tuple[int, ...] = (
    *range(1, 9),
    *range(10, 17, 2),
    *range(20, 33, 4),
    *range(40, 65, 8),
    *range(80, 129, 16),
)
_CONTEXT_TOKENS = 256
"""The least context of a bucket, doubled from one to the next; a split of the attention kernels."""


MAX_PROMPT_TOKENS = 512
"""Tokens of a prompt that still gets a graph; longer ones keep the device busy while the host launches."""
_PROMPT_TOKENS = 64
"""Prompts' buckets are multiples of it."""


class Bucket(NamedTuple):
    """What steps have in common that replay one graph.

    Attributes:
        num_tokens: Tokens; those behind a step's own repeat its last one.
        num_sequences: As many as tokens where each decodes one, else 1.
        max_context: Keys of the longest sequence at most.
        is_filtered: Whether any sequence has top-k, top-p or min-p.
    """

    num_tokens: int
    num_sequences: int
    max_context: int
    is_filtered: bool

    @classmethod
    def of(cls, num_tokens: int, num_sequences: int, max_context: int, *, is_filtered: bool) -> Bucket:
        """The smallest one that holds a step."""
        context = _CONTEXT_TOKENS
        while context < max_context:
            context *= 2
        if num_tokens > num_sequences:
            return cls(-(-num_tokens // _PROMPT_TOKENS) * _PROMPT_TOKENS, 1, context, is_filtered)
        num_rows = bucket_rows(num_tokens)
        return cls(num_rows, num_rows, context, is_filtered)


@dataclass(slots=True, kw_only=True)
class _Place:
    """A bucket's memory, and its graph once it was captured.

    Attributes:
        packed: The arrays of a step, in one piece.
        arrays: Views of them.
        graph: None until the bucket's second step.
        sampled_B: Where the graph leaves its tokens.
    """

    packed: Tensor
    arrays: dict[str, Tensor]
    graph: torch.cuda.CUDAGraph | None = None
    sampled_B: Tensor | None = None


class StepGraphs:
    """Runs steps, by a graph wherever one was captured.

    Args:
        step: Does the arithmetic of a step on the tensors of its bucket, from ids to sampled ids [B]. It
            must not wait for the device.
        device: Where.
        block_size: Tokens of a block.
    """

    def __init__(
        self,
        step: Callable[[dict[str, Tensor], Bucket], Tensor],
        *,
        device: torch.device,
        block_size: int,
    ) -> None:
        self._step = step
        self._device = device
        self._block_size = block_size
        self._places: dict[Bucket, _Place] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, arrays: Mapping[str, Array], bucket: Bucket) -> Tensor:
        """Does one step.

        A bucket's first step runs launch by launch, which compiles what it needs; its second is captured.

        Args:
            arrays: What the step is about, by the names of the model's fields.
            bucket: One that holds it.

        Returns:
            The sampled ids on the device, one per sequence of the bucket. The next step overwrites them.
        """
        padded = padded_arrays(arrays, bucket, self._block_size)
        packed = pack(padded, pinned=True)
        place = self._places.get(bucket)
        if place is None:
            on_device = packed.to(self._device, non_blocking=True)
            place = self._places[bucket] = _Place(packed=on_device, arrays=unpack(on_device, padded))
            return self._step(place.arrays, bucket)
        place.packed.copy_(packed, non_blocking=True)
        if place.graph is None:
            self._capture(place, bucket)
        assert place.graph is not None
        assert place.sampled_B is not None
        place.graph.replay()
        return place.sampled_B

    def _capture(self, place: _Place, bucket: Bucket) -> None:
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process use the device too; they must not end up in the graph.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            place.sampled_B = self._step(place.arrays, bucket)
        place.graph = graph


def padded_arrays(arrays: Mapping[str, Array], bucket: Bucket, block_size: int) -> dict[str, Array]:
    """Brings a step's arrays to the size of its bucket.

    What pads repeats the step's last token: it asks for no other expert or key, so it costs next to nothing.
    In a decode it also writes what that token writes, to the same place. Behind a prompt it belongs to no
    sequence and sees no key, so what it would write is something else, and it writes nothing.
    """
    padded = {name: _repeat_last(array, _length(name, bucket, len(array))) for name, array in arrays.items()}
    if bucket.num_tokens > bucket.num_sequences:
        padded["slot_mapping_T"][len(arrays["slot_mapping_T"]) :] = -1
    tables_BM = padded["block_tables_BM"]
    padded["block_tables_BM"] = np.zeros(
        (bucket.num_sequences, -(-bucket.max_context // block_size)), dtype=tables_BM.dtype
    )
    padded["block_tables_BM"][:, : tables_BM.shape[1]] = tables_BM
    return padded


def _length(name: str, bucket: Bucket, length: int) -> int:
    """By the letter of its first dimension."""
    match name.rpartition("_")[2]:
        case "T":
            return bucket.num_tokens
        case "B" | "BM" | "S":
            return bucket.num_sequences
        case _:
            return length


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
