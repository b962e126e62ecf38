"""Whole decode steps as CUDA graphs, one per bucket of rows and context, captured as they are met.

A decode step is some five hundred small launches, more than a host can make in the time that the device
needs for them. A graph makes them one. It replays over fixed memory, so a step's arrays are brought to the
size of their bucket and copied there in one piece.

B rows of the bucket, M blocks of its longest context.
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


class Bucket(NamedTuple):
    """What steps have in common that replay one graph.

    Attributes:
        num_rows: Rows; those behind a step's own repeat its last one.
        max_context: Keys of its longest row at most.
        is_filtered: Whether any row has top-k, top-p or min-p.
    """

    num_rows: int
    max_context: int
    is_filtered: bool


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


class DecodeGraphs:
    """Runs decode steps, by a graph wherever one was captured.

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

    def run(self, arrays: Mapping[str, Array], *, max_context: int, is_filtered: bool) -> Tensor:
        """Does one step.

        A bucket's first step runs launch by launch, which compiles what it needs; its second is captured.

        Args:
            arrays: What the step is about, by the names of the model's fields; one row per sequence.
            max_context: Keys of its longest row.
            is_filtered: Whether any row has top-k, top-p or min-p.

        Returns:
            The sampled ids on the device, one per row of the bucket. The next step overwrites them.
        """
        num_rows = len(arrays["input_ids_T"])
        bucket = Bucket(bucket_rows(num_rows), _bucket_context(max_context), is_filtered)
        padded = self._padded(arrays, bucket)
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

    def _padded(self, arrays: Mapping[str, Array], bucket: Bucket) -> dict[str, Array]:
        """Repeats the last row: it asks for no other expert, key or token, so it costs next to nothing.

        It writes what that row writes, to the same places.
        """
        num_rows = len(arrays["input_ids_T"])
        rows = np.minimum(np.arange(bucket.num_rows), num_rows - 1)
        padded = {name: array[rows] for name, array in arrays.items()}
        tables = padded["block_tables_BM"]
        width = bucket.max_context // self._block_size
        padded["block_tables_BM"] = np.zeros((bucket.num_rows, width), dtype=tables.dtype)
        padded["block_tables_BM"][:, : tables.shape[1]] = tables[:, :width]
        return padded

    def _capture(self, place: _Place, bucket: Bucket) -> None:
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process use the device too; they must not end up in the graph.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            place.sampled_B = self._step(place.arrays, bucket)
        place.graph = graph


def _bucket_context(max_context: int) -> int:
    context = _CONTEXT_TOKENS
    while context < max_context:
        context *= 2
    return context


def bucket_rows(num_rows: int) -> int:
    """Rows of the smallest bucket that holds so many: exact up to 8, within a quarter beyond."""
    for rows in _ROWS:
        if rows >= num_rows:
            return rows
    return (num_rows + 31) // 32 * 32
