"""A step brought to the size of its bucket gives the tokens of the step itself."""

from __future__ import annotations

import pytest
import torch

from thinkstream_client.records import JobRef
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_model.triton_ops import TritonOps
from thinkstream_workers.batch import Batch
from thinkstream_workers.block_manager import BlockManager
from thinkstream_workers.orders import JobKey, Submit
from thinkstream_workers.packing import pack, unpack
from thinkstream_workers.runner import ModelRunner
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.sequence import Sequence
from thinkstream_workers.step_arrays import input_arrays, sampling_arrays
from thinkstream_workers.step_graphs import Bucket, padded_arrays

from .test_triton_thinker import TINY

BLOCK_SIZE = 16


def _runner(device: torch.device) -> ModelRunner:
    weights = random_thinker(TINY, device=device, seed=5).weights
    kv = KVCache.allocate(TINY, num_blocks=32, block_size=BLOCK_SIZE, dtype=torch.float32, device=device)
    thinker = Thinker(weights, TritonOps(TINY, device))
    return ModelRunner(thinker, kv, num_valid_ids=TINY.vocab_size, max_num_seqs=16)


def _sequences(lengths: list[int]) -> list[Sequence]:
    blocks = BlockManager(32, BLOCK_SIZE)
    sequences: list[Sequence] = []
    for number, length in enumerate(lengths):
        prompt_ids = tuple((number * 37 + place * 11) % TINY.vocab_size for place in range(length))
        order = Submit(
            key=JobKey(JobRef("-", str(number)), 0),
            prompt_ids=prompt_ids,
            sampling=ResolvedSampling(seed=number, temperature=0.7, top_k=20),
        )
        sequences.append(Sequence.of(order, number, 256))
        assert blocks.allocate(sequences[-1], length + 8)
    return sequences


def _padded_ids(runner: ModelRunner, batch: Batch, bucket: Bucket, device: torch.device) -> list[int]:
    arrays = input_arrays(batch, BLOCK_SIZE) | sampling_arrays(batch)
    if bucket.num_tokens == bucket.num_sequences:
        del arrays["cu_seqlens_q_B1"]
    padded = padded_arrays(arrays, bucket, BLOCK_SIZE)
    tensors = unpack(pack(padded, pinned=False).to(device), padded)
    sampled_B = runner._step(tensors, bucket)  # pyright: ignore[reportPrivateUsage]
    token_ids: list[int] = sampled_B[: len(batch.sampled)].tolist()  # pyright: ignore[reportUnknownVariableType]
    return token_ids


@pytest.mark.parametrize("length", [1, 20, 64])
def test_a_prompt(device: torch.device, length: int) -> None:
    runner = _runner(device)
    sequences = _sequences([length])
    batch = Batch.of(sequences, [length])
    alone = runner.collect(runner.launch(batch)).token_ids
    caches = (*runner.kv.keys_NSHC, *runner.kv.values_NSHC)
    expected = [cache_NSHC.clone() for cache_NSHC in caches]
    assert _padded_ids(runner, batch, Bucket(64, 1, 256, True), device) == alone
    for cache_NSHC, expected_NSHC in zip(caches, expected, strict=True):
        # What pads must not write over the last token, which sees other keys than it does.
        assert (cache_NSHC - expected_NSHC).abs().max() < 1e-5


def test_decodes(device: torch.device) -> None:
    runner = _runner(device)
    sequences = _sequences([17, 5, 40])
    first = Batch.of(sequences, [17, 5, 40])
    for sequence, token_id in zip(sequences, runner.collect(runner.launch(first)).token_ids, strict=True):
        sequence.num_computed_tokens = len(sequence.token_ids)
        sequence.token_ids.append(token_id)
    batch = Batch.of(sequences, [1, 1, 1])
    alone = runner.collect(runner.launch(batch)).token_ids
    assert _padded_ids(runner, batch, Bucket(5, 5, 256, True), device) == alone
