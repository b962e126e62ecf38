"""A whole Thinker of kernels against the plain one, and against itself in other company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.support.paged import Paged

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_model.torch_ops import TorchOps
from thinkstream_model.triton_ops import TritonOps

TINY = ThinkerConfig(
    vocab_size=210,
    hidden_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=70,
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=40,
    decoder_sparse_step=1,
    norm_topk_prob=True,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    max_position_embeddings=1024,
    mlp_only_layers=(1,),
)
RELEASED_LAYERS = replace(
    TINY,
    vocab_size=4_096,
    hidden_size=2_048,
    num_layers=4,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    mlp_only_layers=(),
)


def _thinker(config: ThinkerConfig, device: torch.device, dtype: torch.dtype) -> Thinker:
    weights = random_thinker(config, device=device, dtype=dtype, seed=4).weights
    return Thinker(weights, TritonOps(config, device))


def _texts(lengths: Sequence[int], vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]


def test_logits_equal_plain_torch(device: torch.device) -> None:
    thinker = _thinker(TINY, device, torch.float32)
    plain = Thinker(thinker.weights, TorchOps(TINY, device, exact=True))
    texts = _texts((1, 30, 7), TINY.vocab_size)
    pages, plain_pages = Paged(thinker, 3), Paged(plain, 3)
    steps: list[list[tuple[int, list[int]]]] = [
        list(enumerate(texts)),
        [(0, [5]), (1, [6]), (2, [7])],
        [(2, [8]), (0, [9])],
        [(1, [4])],
        [(1, [3]), (0, [1, 2, 3])],
    ]
    for step in steps:
        for logits, expected in zip(pages.step(step), plain_pages.step(step), strict=True):
            assert expected.std() > 0.3, "flat logits would hide errors"
            assert (logits - expected).abs().max() < 2e-5


@pytest.mark.gpu  # the interpreter's matmul is numpy's, which sums by the shape
def test_decoded_tokens_equal_prefilled_ones(device: torch.device) -> None:
    """The same bits, alone, in company, in chunks and token by token."""
    thinker = _thinker(TINY, device, torch.float32)
    _assert_exact(thinker, _texts((19, 33, 2), TINY.vocab_size), decode_from=14)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [(300, 700, 40), tuple(range(1, 300, 9))], ids=["long", "many"])
def test_released_layers_are_exact(device: torch.device, lengths: tuple[int, ...]) -> None:
    thinker = _thinker(RELEASED_LAYERS, device, torch.bfloat16)
    _assert_exact(thinker, _texts(lengths, RELEASED_LAYERS.vocab_size), decode_from=20)


def _assert_exact(thinker: Thinker, texts: list[list[int]], *, decode_from: int) -> None:
    num_blocks = -(-max(map(len, texts)) // 16)
    whole = [Paged(thinker, 1, blocks_per_sequence=num_blocks).step([(0, ids)])[0] for ids in texts]

    together = Paged(thinker, len(texts), blocks_per_sequence=num_blocks, seed=1)
    for logits, expected in zip(together.step(list(enumerate(texts))), whole, strict=True):
        assert torch.equal(logits, expected)

    stepped = Paged(thinker, len(texts), blocks_per_sequence=num_blocks, seed=2)
    parts: list[list[torch.Tensor]] = [[] for _ in texts]
    while stepped.lengths != [len(ids) for ids in texts]:
        step = [(n, _next_chunk(ids, stepped.lengths[n], decode_from)) for n, ids in enumerate(texts)]
        step = sorted(((n, chunk) for n, chunk in step if chunk), key=lambda row: len(row[1]))
        for (n, _), logits in zip(step, stepped.step(step), strict=True):
            parts[n].append(logits)
    for part, expected in zip(parts, whole, strict=True):
        assert torch.equal(torch.cat(part), expected)


def _next_chunk(ids: list[int], done: int, decode_from: int) -> list[int]:
    return ids[done : done + (1 if done >= decode_from else 7)]
