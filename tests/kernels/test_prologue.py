"""Norm, rotation and the write into the cache."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from tests.kernels.support import assert_close, normal
from torch import Tensor

from thinkstream_model.kernels.prologue import attention_prologue, attention_prologue_reference
from thinkstream_model.rope import rotary_table

EPS = 1e-6


class Heads(NamedTuple):
    """Query heads, key heads and their width."""

    num_q: int
    num_kv: int
    width: int


SHAPES = [Heads(4, 2, 16), Heads(7, 1, 32), pytest.param(Heads(32, 4, 128), marks=pytest.mark.gpu)]
BLOCKS, BLOCK_SIZE = 40, 5


Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _inputs(num_tokens: int, heads: Heads, device: torch.device, dtype: torch.dtype) -> Inputs:
    qkv_TQ = 3.0 * normal(num_tokens, (heads.num_q + 2 * heads.num_kv) * heads.width, device, dtype)
    q_norm_C, k_norm_C = 1.0 + normal(2, heads.width, device, dtype)
    generator = torch.Generator().manual_seed(num_tokens)
    positions_T = torch.randint(0, 300, (num_tokens,), generator=generator)
    slots_T = torch.randperm(BLOCKS * BLOCK_SIZE, generator=generator)[:num_tokens]
    slots_T[1::3], positions_T[1::3] = -1, 0
    cos_PC, sin_PC = rotary_table(300, heads.width, 1e6, device)
    return qkv_TQ, q_norm_C, k_norm_C, cos_PC, sin_PC, positions_T.to(device), slots_T.to(device)


def _poisoned_cache(heads: Heads, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (BLOCKS, BLOCK_SIZE, heads.num_kv, heads.width)
    return like.new_full(shape, float("nan")), like.new_full(shape, float("nan"))


@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("num_tokens", [1, 7, 130])
def test_equals_plain_torch(device: torch.device, dtype: torch.dtype, heads: Heads, num_tokens: int) -> None:
    inputs = _inputs(num_tokens, heads, device, dtype)
    cache, expected_cache = _poisoned_cache(heads, inputs[0]), _poisoned_cache(heads, inputs[0])
    q_THC = attention_prologue(*inputs, *cache, eps=EPS)
    assert_close(q_THC, attention_prologue_reference(*inputs, *expected_cache, eps=EPS))
    for written, expected in zip(cache, expected_cache, strict=True):
        assert torch.equal(written.isnan(), expected.isnan()), "other slots than the tokens' own were written"
        assert_close(written.nan_to_num(), expected.nan_to_num())
    assert torch.equal(cache[1].nan_to_num(), expected_cache[1].nan_to_num())


@pytest.mark.parametrize("heads", SHAPES)
def test_token_does_not_depend_on_its_company(device: torch.device, dtype: torch.dtype, heads: Heads) -> None:
    qkv_TQ, q_norm_C, k_norm_C, cos_PC, sin_PC, positions_T, slots_T = _inputs(13, heads, device, dtype)
    fixed = (q_norm_C, k_norm_C, cos_PC, sin_PC)
    together, alone = _poisoned_cache(heads, qkv_TQ), _poisoned_cache(heads, qkv_TQ)
    q_THC = attention_prologue(qkv_TQ, *fixed, positions_T, slots_T, *together, eps=EPS)
    for token in range(13):
        own = slice(token, token + 1)
        q_1HC = attention_prologue(qkv_TQ[own], *fixed, positions_T[own], slots_T[own], *alone, eps=EPS)
        assert torch.equal(q_1HC, q_THC[own])
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
