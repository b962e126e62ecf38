"""Attention over the paged cache: against a dense one, and decode against prefill, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import MagicMock

import pytest
import torch
from tests.kernels.support import assert_close
from torch import Tensor

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.inputs import StepInputs
from thinkstream_model.kernels import attention_decode, splits
from thinkstream_model.kernels.attention_decode import (
    decode_attention,
    decode_attention_reference,
)
from thinkstream_model.kernels.attention_prefill import prefill_attention, prefill_attention_reference
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.rope import rotary_table
from thinkstream_model.step_sizes import SPLIT_KEYS
from thinkstream_model.torch_attention import PagedAttention

RAGGED = (1, 127, 128, 129, 0, 256, 257, 513, 700)
CHUNKS = ((3, 700), (10, 300), (1, 257), (5, 5), (0, 0), (1, 1), (9, 132), (1, 512))
"""Tokens of the step and keys, by sequence."""


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads, their width, and tokens of a block of the cache."""

    num_q: int
    num_kv: int
    width: int
    block_size: int = 16


SHAPES = [
    Heads(4, 2, 16),
    Heads(6, 2, 32, block_size=5),
    pytest.param(Heads(32, 4, 128), marks=pytest.mark.gpu),
]
RELEASED = Heads(32, 4, 128)


@dataclass(frozen=True)
class Cache:
    """Sequences of these lengths in shuffled blocks; what belongs to none is no number."""

    keys_NSHC: Tensor
    values_NSHC: Tensor
    block_tables_BM: Tensor
    context_lens_B: Tensor

    @classmethod
    def filled(cls, lengths: Sequence[int], heads: Heads, device: torch.device, dtype: torch.dtype) -> Cache:
        counts = [-(-length // heads.block_size) for length in lengths]
        generator = torch.Generator().manual_seed(sum(lengths))
        free = [1 + int(block) for block in torch.randperm(sum(counts) + 3, generator=generator)]
        shape = (len(free) + 1, heads.block_size, heads.num_kv, heads.width)
        keys_NSHC = 1.5 * torch.randn(shape, generator=generator)
        values_NSHC = torch.randn(shape, generator=generator)
        is_used_NS = torch.zeros(shape[:2], dtype=torch.bool)
        block_tables_BM = torch.zeros(len(lengths), max(1, *counts), dtype=torch.int32)
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            blocks = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int64)
            block_tables_BM[row, :count] = blocks.int()
            places = torch.arange(length)
            is_used_NS[blocks[places // heads.block_size], places % heads.block_size] = True
        keys_NSHC[~is_used_NS] = values_NSHC[~is_used_NS] = float("nan")
        context_lens_B = torch.tensor(lengths, dtype=torch.int32)
        return cls(
            keys_NSHC.to(device, dtype),
            values_NSHC.to(device, dtype),
            block_tables_BM.to(device),
            context_lens_B.to(device),
        )

    def pages(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The cache and the block tables of some sequences, as the kernels take them."""
        chosen = torch.tensor(rows, device=self.keys_NSHC.device)
        return self.keys_NSHC, self.values_NSHC, self.block_tables_BM[chosen]

    def rows(self, *rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same with the sequences' lengths."""
        return *self.pages(rows), self.context_lens_B[list(rows)]

    @property
    def all_rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys_NSHC, self.values_NSHC, self.block_tables_BM, self.context_lens_B


def queries(num_tokens: int, heads: Heads, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    q_THC = 1.5 * torch.randn(num_tokens, heads.num_q, heads.width, generator=generator)
    return q_THC.to(device, dtype)


def bounds(query_lens: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *query_lens], device=device).cumsum(0).int()


def _arrivals(num_rows: int, heads: Heads, device: torch.device) -> Tensor:
    return torch.zeros(num_rows * heads.num_kv, dtype=torch.int32, device=device)


def _prefill(
    q_THC: Tensor, cache: tuple[Tensor, Tensor, Tensor, Tensor], query_lens: Sequence[int]
) -> Tensor:
    keys_NSHC, values_NSHC, block_tables_BM, context_lens_B = cache
    out_TQ = torch.full_like(q_THC, float("nan")).flatten(1)
    bounds_B1 = bounds(query_lens, q_THC.device)
    return prefill_attention(
        q_THC, keys_NSHC, values_NSHC, block_tables_BM, bounds_B1, context_lens_B, max(query_lens), out_TQ
    )


@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("max_context", [700, 1100])
def test_decode_equals_dense(
    device: torch.device, dtype: torch.dtype, heads: Heads, max_context: int
) -> None:
    cache = Cache.filled(RAGGED, heads, device, dtype)
    q_BHC, arrivals_X = queries(len(RAGGED), heads, device, dtype), _arrivals(len(RAGGED), heads, device)
    poison = torch.full_like(q_BHC, float("nan")).flatten(1)
    out_BQ = decode_attention(
        q_BHC, *cache.all_rows, max_context=max_context, out_BQ=poison, arrivals_X=arrivals_X
    )
    pages = (cache.keys_NSHC.double(), cache.values_NSHC.double(), cache.block_tables_BM)
    expected_BQ = decode_attention_reference(
        q_BHC.double(), *pages, cache.context_lens_B, max_context=max_context
    )
    assert out_BQ is poison and not arrivals_X.any()
    assert_close(out_BQ, expected_BQ.to(dtype))
    assert not out_BQ[RAGGED.index(0)].any()
    merged_apart_BQ = decode_attention(q_BHC, *cache.all_rows, max_context=max_context)
    assert torch.equal(merged_apart_BQ, out_BQ), "where splits are merged made a difference"


@pytest.mark.parametrize("heads", SHAPES)
def test_prefill_equals_dense(device: torch.device, dtype: torch.dtype, heads: Heads) -> None:
    query_lens, context_lens = zip(*CHUNKS, strict=True)
    cache = Cache.filled(context_lens, heads, device, dtype)
    q_THC = queries(sum(query_lens), heads, device, dtype)
    pages = (cache.keys_NSHC.double(), cache.values_NSHC.double(), cache.block_tables_BM)
    expected_TQ = prefill_attention_reference(
        q_THC.double(), *pages, bounds(query_lens, device), cache.context_lens_B, max(query_lens)
    )
    assert_close(_prefill(q_THC, cache.all_rows, query_lens), expected_TQ.to(dtype))


@pytest.mark.parametrize("heads", SHAPES)
def test_decoding_a_token_gives_the_bits_of_its_prefill(
    device: torch.device, dtype: torch.dtype, heads: Heads
) -> None:
    query_lens, context_lens = zip(*CHUNKS, strict=True)
    cache = Cache.filled(context_lens, heads, device, dtype)
    q_THC = queries(sum(query_lens), heads, device, dtype)
    prefilled_TQ = _prefill(q_THC, cache.all_rows, query_lens)
    tokens = [(b, n) for b, (query_len, n) in enumerate(CHUNKS) for n in range(n - query_len + 1, n + 1)]
    pages = cache.pages([sequence for sequence, _ in tokens])
    context_lens_T = torch.tensor([n for _, n in tokens], dtype=torch.int32, device=device)
    arrivals_X = _arrivals(len(tokens), heads, device)
    decoded_TQ = decode_attention(q_THC, *pages, context_lens_T, max_context=700, arrivals_X=arrivals_X)
    assert torch.equal(decoded_TQ, prefilled_TQ)
    single_TQ = prefill_attention(
        q_THC, *pages, bounds([1] * len(tokens), device), context_lens_T, max_query_len=1
    )
    assert torch.equal(single_TQ, prefilled_TQ), "a prefill of single tokens is another"


@pytest.mark.parametrize("heads", SHAPES)
def test_row_does_not_depend_on_its_company(device: torch.device, dtype: torch.dtype, heads: Heads) -> None:
    cache = Cache.filled(RAGGED, heads, device, dtype)
    q_BHC = queries(len(RAGGED), heads, device, dtype)
    together_BQ = decode_attention(q_BHC, *cache.all_rows, max_context=700)
    for row, length in enumerate(RAGGED):
        alone_1Q = decode_attention(q_BHC[row : row + 1], *cache.rows(row), max_context=length)
        assert torch.equal(alone_1Q[0], together_BQ[row])


@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("share", [1, 2])
def test_programs_that_take_several_splits_give_the_same_bits(
    device: torch.device, dtype: torch.dtype, heads: Heads, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.filled(RAGGED, heads, device, dtype)
    q_BHC = queries(len(RAGGED), heads, device, dtype)
    arrivals_X = _arrivals(len(RAGGED), heads, device)
    expected_BQ = decode_attention(q_BHC, *cache.all_rows, max_context=700)
    monkeypatch.setattr(attention_decode, "_MAX_PROGRAMS", share * len(RAGGED) * heads.num_kv)
    for max_context, given in ((700, arrivals_X), (700, None), (1100, arrivals_X)):
        out_BQ = decode_attention(q_BHC, *cache.all_rows, max_context=max_context, arrivals_X=given)
        assert torch.equal(out_BQ, expected_BQ)
    assert not arrivals_X.any()


def test_a_long_row_does_not_multiply_the_programs_of_short_ones(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = MagicMock()
    monkeypatch.setattr(attention_decode, "_decode_kernel", kernel)
    monkeypatch.setattr(splits, "_merge_kernel", MagicMock())

    def num_programs(num_rows: int, max_context: int) -> int:
        q_BHC = torch.empty(num_rows, 8, 16, device=device)
        cache_NSHC = torch.empty(1, 16, 4, 16, device=device)
        tables_BM = torch.empty(num_rows, max_context // 16, dtype=torch.int32, device=device)
        decode_attention(q_BHC, cache_NSHC, cache_NSHC, tables_BM, tables_BM[:, 0], max_context=max_context)
        return math.prod(kernel.__getitem__.call_args.args[0])

    assert num_programs(256, 32_768) <= num_programs(256, 4_096)
    assert num_programs(1, 32_768) == 4 * 32_768 // SPLIT_KEYS, "a lone row needs them all"


def test_equals_the_plain_operations(device: torch.device) -> None:
    heads = Heads(4, 2, 16)
    chunks = [(n, length) for n, length in CHUNKS if n]
    query_lens, context_lens = zip(*chunks, strict=True)
    cache = Cache.filled(context_lens, heads, device, torch.float32)
    q_THC = queries(sum(query_lens), heads, device, torch.float32)
    positions = [p for n, length in chunks for p in range(length - n, length)]
    inputs = StepInputs(
        input_ids_T=torch.zeros(len(positions), dtype=torch.int64, device=device),
        positions_T=torch.tensor(positions, device=device),
        slot_mapping_T=torch.zeros(len(positions), dtype=torch.int64, device=device),
        cu_seqlens_q_B1=bounds(query_lens, device),
        context_lens_B=cache.context_lens_B,
        block_tables_BM=cache.block_tables_BM,
        output_rows_S=torch.arange(len(positions), device=device),
        query_lens=query_lens,
        context_lens=context_lens,
    )
    kv = KVCache(keys_NSHC=(cache.keys_NSHC.nan_to_num(),), values_NSHC=(cache.values_NSHC.nan_to_num(),))
    config = ThinkerConfig(
        vocab_size=8, hidden_size=8, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16,
        intermediate_size=8, num_experts=0, num_experts_per_tok=0, moe_intermediate_size=0,
        decoder_sparse_step=1, norm_topk_prob=True, rope_theta=1e6, rms_norm_eps=1e-6,
        max_position_embeddings=1024,
    )  # fmt: skip
    plain = PagedAttention(config, inputs, kv, rotary_table(1024, 16, 1e6, device))
    assert_close(_prefill(q_THC, cache.all_rows, query_lens), plain.attend(q_THC, 0))


@pytest.mark.gpu
@pytest.mark.parametrize("num_copies", [1, 40], ids=["few", "many"])
def test_released_shape_is_exact_in_long_contexts(device: torch.device, num_copies: int) -> None:
    """Up to 20 splits; loads run ahead otherwise where there are many rows."""
    lengths = (5000, 1, 2049, 640)
    cache = Cache.filled(lengths, RELEASED, device, torch.bfloat16)
    for row, length in enumerate(lengths):
        q_THC = queries(length, RELEASED, device, torch.bfloat16)
        prefilled_TQ = _prefill(q_THC, cache.rows(row), [length])
        wanted = sorted({1, 127, 128, 129, 256, 257, 640, 1024, 1025, 2048, length} & set(range(length + 1)))
        wanted *= num_copies
        tokens = torch.tensor(wanted, device=device)
        pages = cache.pages([row] * len(wanted))
        arrivals_X = _arrivals(len(wanted), RELEASED, device)
        decoded_BQ = decode_attention(
            q_THC[tokens - 1], *pages, tokens.int(), max_context=length, arrivals_X=arrivals_X
        )
        assert torch.equal(decoded_BQ, prefilled_TQ[tokens - 1])
