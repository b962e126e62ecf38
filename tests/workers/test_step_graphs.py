"""When a step is captured and what becomes of graphs; what they compute is tested in tests/kernels."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from tests.support.paper_graphs import PaperCapture
from torch import Tensor

from thinkstream_workers.buckets import Bucket
from thinkstream_workers.step_arrays import Array
from thinkstream_workers.step_graphs import StepGraphs

FIRST, SECOND, THIRD = (Bucket(rows, 256, 0, 0, "filtered") for rows in (1, 2, 3))
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
]


class Steps:
    """A step that remembers the ids it was done with, and graphs of it."""

    def __init__(self, capture: PaperCapture, max_graphs: int = 64) -> None:
        self.done: list[list[int]] = []
        self.error: Exception | None = None
        self.capture = capture
        device = torch.device("cpu")
        self._graphs = StepGraphs(self._do, capture, device=device, block_size=64, max_graphs=max_graphs)

    def run(self, bucket: Bucket, first_id: int) -> None:
        self._graphs.run(_arrays(bucket, first_id), bucket)
        assert self.done.pop() == list(range(first_id, first_id + bucket.num_sequences))
        assert not self.done, "done twice"

    def prepare(self, bucket: Bucket) -> bool:
        was_done = self._graphs.prepare(_arrays(bucket, 5), bucket)
        self.done.clear()
        return was_done

    def _do(self, tensors: dict[str, Tensor], bucket: Bucket) -> None:
        if self.error is not None:
            raise self.error
        assert len(tensors["input_ids_T"]) == bucket.num_tokens
        self.done.append([int(token_id) for token_id in tensors["input_ids_T"]])
        tensors["input_ids_T"].fill_(-1)  # a step may write over its inputs


def _arrays(bucket: Bucket, first_id: int) -> dict[str, Array]:
    num_rows = bucket.num_sequences
    return {
        "input_ids_T": np.arange(first_id, first_id + num_rows),
        "positions_T": np.arange(num_rows),
        "slot_mapping_T": np.arange(num_rows),
        "output_rows_S": np.arange(num_rows),
        "cu_seqlens_q_B1": np.arange(num_rows + 1, dtype=np.int32),
        "context_lens_B": np.ones(num_rows, dtype=np.int32),
        "block_tables_BM": np.zeros((num_rows, 1), dtype=np.int32),
    }


def test_a_bucket_is_prepared_until_it_has_its_graph() -> None:
    steps = Steps(PaperCapture())
    steps.run(FIRST, 5)
    assert [steps.prepare(FIRST) for _ in range(2)] == [True, False]
    assert [steps.prepare(SECOND) for _ in range(3)] == [True, True, False]
    assert len(steps.capture.graphs) == 2
    steps.run(SECOND, 7)
    assert len(steps.capture.graphs) == 2
    steps.capture.capture_error = OUT_OF_MEMORY[0]
    assert [steps.prepare(THIRD) for _ in range(3)] == [True, True, False]


def test_a_buckets_second_step_is_captured_and_replays_with_the_ids_of_each() -> None:
    steps = Steps(PaperCapture())
    captured: list[tuple[int, int]] = []
    for first_id in (5, 7, 9, 11):
        steps.run(SECOND, first_id)
        captured.append((len(steps.capture.graphs), steps.capture.num_replays))
    assert captured == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_a_first_step_that_fails_does_not_count() -> None:
    steps = Steps(PaperCapture())
    steps.error = RuntimeError("no kernel of that size yet")
    with pytest.raises(RuntimeError):
        steps.run(FIRST, 5)
    steps.error = None
    steps.run(FIRST, 5)
    assert not steps.capture.graphs


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("place", ["capture_error", "replay_error"])
def test_a_bucket_for_whose_graph_there_is_no_memory_goes_on_launch_by_launch(
    error: Exception, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps(PaperCapture())
    steps.run(FIRST, 5)
    setattr(steps.capture, place, error)
    with caplog.at_level(logging.WARNING):
        for first_id in (6, 7, 8):
            steps.run(FIRST, first_id)
    assert caplog.text.count("no memory for a graph") == 1
    assert steps.capture.num_replays == 0
    setattr(steps.capture, place, None)
    for first_id in (5, 6):
        steps.run(SECOND, first_id)
    assert steps.capture.num_replays == 1


def test_a_capture_that_fails_otherwise_fails_the_step() -> None:
    steps = Steps(PaperCapture(capture_error=RuntimeError("operation not permitted")))
    steps.run(FIRST, 5)
    with pytest.raises(RuntimeError, match="not permitted"):
        steps.run(FIRST, 6)


def test_the_graph_least_recently_used_is_given_back() -> None:
    steps = Steps(PaperCapture(), max_graphs=2)
    for bucket in (FIRST, FIRST, SECOND, SECOND, FIRST):
        steps.run(bucket, 5)
    assert len(steps.capture.graphs) == 2
    steps.run(THIRD, 5)  # in the place of the second
    for bucket in (FIRST, THIRD, FIRST):
        steps.run(bucket, 6)
    assert len(steps.capture.graphs) == 3
    for bucket in (SECOND, SECOND):
        steps.run(bucket, 7)
    assert len(steps.capture.graphs) == 4
