"""The Thinker against transformers, and against itself: whole, in chunks, in company."""

# torch's stubs leave `tolist` untyped.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_model.torch_ops import TorchOps

TOLERANCE = 2e-5


def _text(seed: int, length: int, vocab: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, vocab, (length,), generator=generator).tolist()
    return ids


class TestAgainstTransformers:
    def test_logits_of_prompt_chunks_and_decode(self, reference: Any, paged: Callable[..., Any]) -> None:
        ids = _text(0, 150, 300)
        expected = reference.logits(ids)
        assert expected.std() > 0.3, "flat logits would hide errors"

        (whole,) = paged(reference.thinker, 1).step([(0, ids)])
        assert (whole - expected).abs().max() < TOLERANCE

        pages = paged(reference.thinker, 1, seed=1)
        chunks = [ids[:50], ids[50:57], ids[57:121], *([token] for token in ids[121:])]
        parts = [pages.step([(0, chunk)])[0] for chunk in chunks]
        assert (torch.cat(parts) - expected).abs().max() < TOLERANCE

    def test_prompts_of_a_batch_do_not_mix(self, reference: Any, paged: Callable[..., Any]) -> None:
        texts = [_text(n, 3 + 9 * n, 300) for n in range(8)]
        for logits, ids in zip(paged(reference.thinker, 8).step(list(enumerate(texts))), texts, strict=True):
            assert (logits - reference.logits(ids)).abs().max() < TOLERANCE

    def test_greedy_texts_equal_generate(self, reference: Any, paged: Callable[..., Any]) -> None:
        prompts = [_text(100 + n, 2 + 4 * n, 300) for n in range(20)]
        texts = paged(reference.thinker, 20).greedy(prompts, 12)
        assert texts == [reference.generate(prompt, 12) for prompt in prompts]


class TestExactness:
    """A row's logits are the same bits whatever shares its step."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_alone_in_a_batch_chunked_and_prefilled_again(
        self, tiny_config: ThinkerConfig, paged: Callable[..., Any], dtype: torch.dtype
    ) -> None:
        thinker = random_thinker(tiny_config, seed=2, dtype=dtype)
        texts = [_text(n, 40 + 5 * n, tiny_config.vocab_size) for n in range(32)]
        whole = [paged(thinker, 1).step([(0, ids)])[0] for ids in texts]

        together = paged(thinker, 32, seed=1).step(list(enumerate(texts)))
        assert all(torch.equal(a, b) for a, b in zip(together, whole, strict=True))

        # Prompts come in chunks of uneven sizes while others decode already.
        pages = paged(thinker, 32, seed=2)
        parts: list[list[torch.Tensor]] = [[] for _ in texts]
        while pages.lengths != [len(ids) for ids in texts]:
            step = [(n, self._next_chunk(n, ids, pages.lengths[n])) for n, ids in enumerate(texts)]
            step = [(n, chunk) for n, chunk in step if chunk]
            for (n, _), logits in zip(step, pages.step(step), strict=True):
                parts[n].append(logits)
        assert all(torch.equal(torch.cat(a), b) for a, b in zip(parts, whole, strict=True))

    @pytest.mark.parametrize("threads", [2, 3])
    def test_with_several_threads(
        self, tiny_config: ThinkerConfig, paged: Callable[..., Any], threads: int
    ) -> None:
        """Threads cut element-wise work at odd places, which must not show; enough rows to be cut."""
        thinker = random_thinker(tiny_config, seed=2)
        texts = [_text(n, 100 + 7 * n, tiny_config.vocab_size) for n in range(12)]
        alone = [paged(thinker, 1).step([(0, ids)])[0] for ids in texts]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            together = paged(thinker, 12, seed=1).step(list(enumerate(texts)))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))

    @staticmethod
    def _next_chunk(n: int, ids: list[int], done: int) -> list[int]:
        return ids[done : done + (1 if done > 30 else 7 + n)]

    def test_greedy_text_goes_on_after_a_resume(
        self, tiny_config: ThinkerConfig, paged: Callable[..., Any]
    ) -> None:
        thinker = random_thinker(tiny_config, seed=3)
        prompt = _text(5, 9, tiny_config.vocab_size)
        (text,) = paged(thinker, 1).greedy([prompt], 40)
        (rest,) = paged(thinker, 1, seed=4).greedy([prompt + text[:17]], 23)
        assert text[17:] == rest

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_what_others_left_in_the_blocks_does_not_matter(
        self, tiny_config: ThinkerConfig, paged: Callable[..., Any], dtype: torch.dtype
    ) -> None:
        thinker = random_thinker(tiny_config, seed=2, dtype=dtype)
        texts = [_text(n, 1 + 31 * n, tiny_config.vocab_size) for n in range(6)]
        clean, stale = paged(thinker, 6), paged(thinker, 6)
        for cache in (*stale.kv.keys_NSHC, *stale.kv.values_NSHC):
            cache.fill_(float("nan"))
        for _ in range(3):
            chunks = [(n, ids[clean.lengths[n] :][:70]) for n, ids in enumerate(texts)]
            chunks = [(n, chunk) for n, chunk in chunks if chunk]
            for a, b in zip(clean.step(chunks), stale.step(chunks), strict=True):
                assert torch.equal(a, b)

    def test_is_not_vacuous(self, tiny_config: ThinkerConfig, paged: Callable[..., Any]) -> None:
        """Without tiles the same comparison fails, so the tests above do test something."""
        weights = random_thinker(tiny_config, seed=2).weights
        plain = Thinker(weights, TorchOps(tiny_config, torch.device("cpu"), exact=False))
        ids = _text(0, 120, tiny_config.vocab_size)
        whole = paged(plain, 1).step([(0, ids)])[0]
        pages = paged(plain, 1)
        parts = torch.cat([pages.step([(0, [token])])[0] for token in ids])
        assert (whole - parts).abs().max() < 1e-4
        assert not torch.equal(whole, parts)


def test_only_wanted_rows_come_back(tiny_config: ThinkerConfig, paged: Callable[..., Any]) -> None:
    pages = paged(random_thinker(tiny_config), 2)
    inputs = pages.inputs([(0, [1, 2, 3]), (1, [4, 5])])
    every = pages.thinker.forward(inputs, pages.kv)
    wanted = pages.thinker.forward(replace(inputs, output_rows_S=torch.tensor([2, 4])), pages.kv)
    assert wanted.shape == (2, tiny_config.vocab_size)
    assert wanted.dtype == torch.float32
    assert torch.equal(wanted, every[[2, 4]])
    none = pages.thinker.forward(replace(inputs, output_rows_S=torch.tensor([], dtype=torch.int64)), pages.kv)
    assert none.shape == (0, tiny_config.vocab_size)


def test_runs_in_bfloat16(tiny_config: ThinkerConfig, paged: Callable[..., Any]) -> None:
    exact = random_thinker(tiny_config, seed=7)
    ids = _text(1, 90, tiny_config.vocab_size)
    rounded = random_thinker(tiny_config, seed=7, dtype=torch.bfloat16)
    for name, tensor in rounded.weights.named_destinations().items():
        tensor.copy_(exact.weights.named_destinations()[name])
    whole, half = paged(exact, 1).step([(0, ids)])[0], paged(rounded, 1).step([(0, ids)])[0]
    assert half.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(whole, half, dim=-1)
    assert cosine.median() > 0.99


def test_random_weights_depend_on_the_seed(tiny_config: ThinkerConfig) -> None:
    first, same, other = (random_thinker(tiny_config, seed=seed).weights.lm_head_VD for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
