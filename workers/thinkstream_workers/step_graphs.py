"""Steps as graphs, one per bucket of sizes, captured as they are met.

A step is some five hundred small launches, more than a host can make in the time that the device needs for
decodes and short prompts. A graph makes them one. It replays over fixed memory, so a step's arrays are
brought to the size of their bucket and copied there in one piece.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .buckets import Bucket
from .device_errors import is_out_of_memory
from .packing import pack, unpack
from .padding import padded_arrays
from .step_arrays import Array

logger = logging.getLogger(__name__)

MAX_GRAPHS = 128
"""Graphs at one time. Of a replica's some thousand buckets so many are in use; each takes memory."""


class Graph(Protocol):
    """Launches that were recorded."""

    def replay(self) -> None:
        """Makes them once more, over the same memory."""
        ...


Capture = Callable[[Callable[[], None]], Graph]
"""Makes a graph of the launches of what it calls, which are recorded and not done."""


class CudaCapture:
    """A ``Capture`` of CUDA graphs, which share one pool of memory: they replay one behind the other."""

    def __init__(self) -> None:
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, step: Callable[[], None]) -> Graph:
        """Captures a step. Raises what it raises, or that there is no memory for the graph itself."""
        if not self._graphs:
            self._pool = torch.cuda.graph_pool_handle()  # with its last graph a pool is gone
        graph = torch.cuda.CUDAGraph()
        # The outer context puts the stream back even where the end of a capture fails. Other threads of the
        # process use the device too, and must not end up in the graph.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            step()
        self._graphs.add(graph)
        return graph


@dataclass(slots=True, kw_only=True)
class _Captured:
    """A bucket's memory, and its graph once there is one.

    Attributes:
        packed: The arrays of a step, in one piece.
        tensors: Views of them.
        graph: None until the bucket's second step.
        is_capturable: Whether there may still be one; not once there was no memory for it.
    """

    packed: Tensor
    tensors: dict[str, Tensor]
    graph: Graph | None = None
    is_capturable: bool = True


class StepGraphs:
    """Runs steps, by a graph wherever one was captured.

    A bucket's first step runs launch by launch, which compiles what it needs, and its second is captured.
    Of more buckets than ``max_graphs`` the least recently used is forgotten, graph and all.

    Args:
        step: Does a step on the tensors of its bucket, from ids to what it leaves in memory of its own. It
            must not wait for the device.
        capture: Makes a graph of it.
        device: Where.
        block_size: Tokens of a block.
        max_graphs: Buckets at one time.
    """

    def __init__(
        self,
        step: Callable[[dict[str, Tensor], Bucket], None],
        capture: Capture,
        *,
        device: torch.device,
        block_size: int,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self._step = step
        self._capture = capture
        self._device = device
        self._block_size = block_size
        self._max_graphs = max_graphs
        self._buckets: OrderedDict[Bucket, _Captured] = OrderedDict()  # the least recently used first

    def run(self, arrays: Mapping[str, Array], bucket: Bucket) -> None:
        """Does one step.

        Args:
            arrays: What the step is about, by the names of the model's fields.
            bucket: One that holds it.
        """
        padded = padded_arrays(arrays, bucket, self._block_size)
        packed = pack(padded, pinned=self._device.type == "cuda")
        captured = self._buckets.get(bucket)
        if captured is None:
            on_device = packed.to(self._device, non_blocking=True)
            captured = _Captured(packed=on_device, tensors=unpack(on_device, padded))
            self._step(captured.tensors, bucket)
            self._remember(bucket, captured)
            return
        self._buckets.move_to_end(bucket)
        captured.packed.copy_(packed, non_blocking=True)
        if not self._replay(captured, bucket):
            self._step(captured.tensors, bucket)

    def prepare(self, arrays: Mapping[str, Array], bucket: Bucket) -> bool:
        """Does one step of a bucket unless it has its graph, or can have none; tells whether it did."""
        captured = self._buckets.get(bucket)
        if captured is not None and (captured.graph is not None or not captured.is_capturable):
            return False
        self.run(arrays, bucket)
        return True

    def _remember(self, bucket: Bucket, captured: _Captured) -> None:
        if len(self._buckets) == self._max_graphs:
            self._buckets.popitem(last=False)
        self._buckets[bucket] = captured

    def _replay(self, captured: _Captured, bucket: Bucket) -> bool:
        """Does a step by its bucket's graph, captured if need be; tells whether there is memory for one."""
        if not captured.is_capturable:
            return False
        try:
            if captured.graph is None:
                captured.graph = self._capture(lambda: self._step(captured.tensors, bucket))
            captured.graph.replay()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            captured.graph, captured.is_capturable = None, False  # and nothing of the step is done
            logger.warning("no memory for a graph of %s: its steps take longer", bucket)
        return captured.is_capturable
