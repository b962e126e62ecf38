"""A step brought to the size of its bucket, and a graph of it, give the tokens of the step itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tests.support.paper_graphs import PaperCapture

from thinkstream_client.records import JobRef
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_model.triton_ops import TritonOps
from thinkstream_workers.batch import Batch, SampledTokens
from thinkstream_workers.block_manager import BlockManager
from thinkstream_workers.buckets import Bucket
from thinkstream_workers.orders import JobKey, Submit
from thinkstream_workers.rehearsal import blank_batch
from thinkstream_workers.runner import InFlight, ModelRunner
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.sequence import Sequence as Tokens
from thinkstream_workers.step_graphs import Capture, CudaCapture, Graph

from .test_triton_thinker import TINY

BLOCK_SIZE = 16
FILTERED = ResolvedSampling(temperature=0.7, top_k=20)
UNFILTERED = ResolvedSampling(temperature=0.7)
BIASED = ResolvedSampling(temperature=0.7, top_p=0.9, logit_bias={3: 1.0}, logprobs=2)
PENALIZED = ResolvedSampling(temperature=0.7, frequency_penalty=0.5, repetition_penalty=1.2)


class Side:
    """A runner with sequences of its own; what it does once, another does alike."""

    def __init__(self, device: torch.device, capture: Capture | None) -> None:
        weights = random_thinker(TINY, device=device, seed=5).weights
        self.kv = KVCache.allocate(
            TINY, num_blocks=480, block_size=BLOCK_SIZE, dtype=torch.float32, device=device
        )
        self._blocks = BlockManager(480, BLOCK_SIZE)
        self._runner = ModelRunner(
            Thinker(weights, TritonOps(TINY, device)),
            self.kv,
            num_valid_ids=TINY.vocab_size,
            max_num_seqs=16,
            max_context=512,
            capture=capture,
        )
        self._in_flight: InFlight | None = None
        self.brought: list[SampledTokens] = []

    def sequences(self, lengths: Sequence[int], sampling: ResolvedSampling = FILTERED) -> list[Tokens]:
        sequences: list[Tokens] = []
        for number, length in enumerate(lengths):
            prompt_ids = tuple((number * 37 + place * 11) % TINY.vocab_size for place in range(length))
            order = Submit(key=JobKey(JobRef("-", str(number)), 0), prompt_ids=prompt_ids, sampling=sampling)
            sequences.append(Tokens.of(order, number, 512))
            assert self._blocks.allocate(sequences[-1], length + 40)
        return sequences

    def step(self, sequences: Sequence[Tokens]) -> None:
        """All that is left of each sequence's tokens, launched before the step before it is read."""
        batch = Batch.of(sequences, [s.num_tokens - s.num_computed_tokens for s in sequences])
        launched = self._runner.launch(batch, self._in_flight)
        self.collect()
        for row, sequence in enumerate(batch.sampled):
            sequence.num_computed_tokens = sequence.num_tokens
            sequence.token_ids.append(~row)
        self._in_flight = launched
        if batch.needs_ids:
            self.collect()

    def rehearse(self, bucket: Bucket) -> None:
        while self._runner.rehearse(blank_batch(bucket), bucket):
            pass

    def collect(self) -> None:
        if self._in_flight is None:
            return
        batch = self._in_flight.batch
        self.brought.append(self._runner.collect(self._in_flight))
        for sequence, place, token_id in zip(
            batch.sampled, batch.places, self.brought[-1].token_ids, strict=True
        ):
            sequence.token_ids[place] = token_id
        self._in_flight = None


def both(device: torch.device, capture: Capture, play: Callable[[Side], None]) -> tuple[Side, Side]:
    """Plays the same with graphs and without, and sees that the same came of it."""
    plain, captured = Side(device, None), Side(device, capture)
    for side in (plain, captured):
        play(side)
        side.collect()
    assert [step.token_ids for step in captured.brought] == [step.token_ids for step in plain.brought]
    assert [step.logprobs for step in captured.brought] == [step.logprobs for step in plain.brought]
    return plain, captured


@pytest.mark.parametrize("length", [2, pytest.param(20, marks=pytest.mark.gpu), 64])
def test_a_prompt(device: torch.device, length: int) -> None:
    plain, captured = both(device, PaperCapture(), lambda side: side.step(side.sequences([length])))
    _assert_same_caches(plain, captured)


def test_decodes(device: torch.device) -> None:
    def play(side: Side) -> None:
        sequences = side.sequences([17, 5, 40, *range(1, 7)])
        side.step(sequences)
        side.step(sequences)

    _assert_same_caches(*both(device, PaperCapture(), play))


@pytest.mark.parametrize(
    "lengths",
    [[3, 40, 2], *(pytest.param(lengths, marks=pytest.mark.gpu) for lengths in ([20], [400, 450, 480]))],
)
def test_prompts_beside_decodes(device: torch.device, lengths: list[int]) -> None:
    def play(side: Side) -> None:
        decodes = side.sequences([17, 5, 40])
        side.step(decodes)
        prompts = side.sequences(lengths)
        side.step([*decodes, *prompts])
        side.step([*decodes, *prompts])  # each from the token that the step before has left on the device

    capture = PaperCapture()
    plain, captured = both(device, capture, play)
    _assert_same_caches(plain, captured)


def test_a_rehearsal_leaves_no_trace_but_graphs(device: torch.device) -> None:
    capture = PaperCapture()

    def play(side: Side) -> None:
        sequences = side.sequences([17, 5, 40])
        side.step(sequences)
        side.collect()
        side.rehearse(Bucket(3, 256, 0, 0, "filtered"))
        side.rehearse(Bucket(2, 512, 64, 512, "filtered"))
        assert len(capture.graphs) in {0, 2}
        side.step(sequences)

    _assert_same_caches(*both(device, capture, play))
    assert [graph.num_replays for graph in capture.graphs] == [2, 1]


def _assert_same_caches(plain: Side, captured: Side) -> None:
    """What pads must not write, least of all over the last token."""
    for cache_NSHC, expected_NSHC in zip(
        (*captured.kv.keys_NSHC, *captured.kv.values_NSHC),
        (*plain.kv.keys_NSHC, *plain.kv.values_NSHC),
        strict=True,
    ):
        assert (cache_NSHC - expected_NSHC).abs().max() < 1e-5


@pytest.mark.gpu
def test_graphs_of_every_kind_between_steps_that_have_none(device: torch.device) -> None:
    capture = CudaCapture()
    graphs: list[Graph] = []

    def counting(step: Callable[[], None]) -> Graph:
        graphs.append(capture(step))
        return graphs[-1]

    def play(side: Side) -> None:
        few, many = side.sequences([17, 5, 300]), side.sequences([3] * 9)  # 4 splits; 10 rows for 9
        for sampling in (FILTERED, UNFILTERED, BIASED, PENALIZED):
            other = side.sequences([30, 40], sampling)
            for decoded in (few, many, other):
                side.step(decoded)  # prompts and what is left of them, launch by launch
                for _ in range(4):
                    side.step(decoded)
            for _ in range(4):
                side.step([*other, *side.sequences([9])])
            side.step([*other, *side.sequences([3] * 9)])  # more prompts than a graph has room for
            for decoded in (many, few, other):
                side.step(decoded)
        for length in (2, 20, 64, 70, 64, 20):
            side.step(side.sequences([length]))

    both(device, counting, play)
    assert len(graphs) >= 6
