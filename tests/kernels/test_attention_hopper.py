"""Hopper's own prefill kernel: the bits of the one for every device."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import Mock

import pytest
import torch
from tests.kernels.test_attention import CHUNKS, RELEASED, Cache, Heads, bounds, queries
from torch import Tensor

from thinkstream_model.kernels import attention_prefill, attention_prefill_hopper
from thinkstream_model.kernels.optional_gluon import OptionalGluon

STEPS = [
    CHUNKS,
    [(4_096, 4_096), (4_096, 4_096)],
    [(2_048, 6_144), (333, 333)],
    [(1, 1), (128, 128), (129, 385), (700, 1_723)],
    [(5, 255), (16, 256), (17, 257)],
]
"""Tokens of the step and keys, by sequence."""


STEP, HEADS = [(3, 3), (4, 9)], Heads(4, 2, 16, block_size=8)


def prefilled(
    steps: Sequence[tuple[int, int]],
    heads: Heads,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    query_lens = [num_tokens for num_tokens, _ in steps]
    cache = Cache.filled([num_keys for _, num_keys in steps], heads, device, dtype)
    q_THC = queries(sum(query_lens), heads, device, dtype)
    keys_NSHC, values_NSHC, block_tables_BM, context_lens_B = cache.all_rows
    return attention_prefill.prefill_attention(
        q_THC, keys_NSHC, values_NSHC, block_tables_BM, bounds(query_lens, device), context_lens_B,
        max_query_len=max(query_lens),
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("heads", [RELEASED, Heads(8, 2, 128, block_size=8), Heads(6, 2, 128, block_size=32)])
def test_has_the_bits_of_the_kernel_for_every_device(
    steps: Sequence[tuple[int, int]], heads: Heads, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("no Hopper")
    own = Mock(wraps=attention_prefill_hopper.prefill_attention_hopper)
    monkeypatch.setattr(attention_prefill_hopper, "prefill_attention_hopper", own)
    out_TQ = prefilled(steps, heads, device)
    assert torch.equal(out_TQ, prefilled(steps, heads, device))
    assert own.call_count == 2, "after a first call that failed the other kernel stands for it"
    monkeypatch.setattr(attention_prefill.hopper_kernels, "is_usable", False)
    assert torch.equal(out_TQ, prefilled(steps, heads, device))


def test_is_not_for_what_other_devices_have() -> None:
    assert not attention_prefill_hopper.is_suited(
        torch.zeros(1, 8, 128).bfloat16(), torch.zeros(1, 16, 2, 128).bfloat16()
    )


def test_the_one_for_every_device_stands_in_for_what_cannot_be_compiled(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_TQ = prefilled(STEP, HEADS, device, torch.float32)
    own = Mock(side_effect=TypeError("of 3 arguments"))
    monkeypatch.setattr(attention_prefill, "hopper_kernels", OptionalGluon("tests", "nothing is slower"))
    monkeypatch.setattr(attention_prefill_hopper, "NUM_ROWS", 1)
    monkeypatch.setattr(attention_prefill_hopper, "is_suited", Mock(return_value=True))
    monkeypatch.setattr(attention_prefill_hopper, "prefill_attention_hopper", own)
    for _ in range(2):
        assert torch.equal(prefilled(STEP, HEADS, device, torch.float32), expected_TQ)
    assert own.call_count == 1
