"""Attention of a handful of decoded rows in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.kernels.support import assert_close, normal
from tests.kernels.test_attention import SHAPES, Cache, Heads
from torch import Tensor

from thinkstream_model.inputs import StepInputs
from thinkstream_model.kernels.attention_small import attend_small, attend_small_reference, is_suited
from thinkstream_model.rope import Rotation, rotary_table

EPS = 1e-6
LENGTHS = ((1,), (127, 128), (129, 2), (256, 257), (700, 513))


class Step:
    """A step of one new token for each sequence, whose place in the cache is not written yet.

    A graph may be captured for more keys than there are.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        heads: Heads,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_context: int,
    ) -> None:
        cache = Cache.filled(lengths, heads, device, dtype)
        last_B = torch.tensor([max(length - 1, 0) for length in lengths], device=device)
        blocks_B = cache.block_tables_BM.gather(1, (last_B // heads.block_size).unsqueeze(1)).squeeze(1)
        slots_B = blocks_B.long() * heads.block_size + last_B % heads.block_size
        slots_B = torch.where(cache.context_lens_B > 0, slots_B, -1)
        for cached_NSHC in (cache.keys_NSHC, cache.values_NSHC):
            cached_NSHC.flatten(0, 1)[slots_B[slots_B >= 0]] = float("nan")
        self.cached = cache.keys_NSHC, cache.values_NSHC
        qkv_width = (heads.num_q + 2 * heads.num_kv) * heads.width
        self.qkv_BQ = 3.0 * normal(len(lengths), qkv_width, device, dtype)
        self.q_norm_C, self.k_norm_C = 1.0 + normal(2, heads.width, device, dtype)
        self.rotary = rotary_table(1200, heads.width, 1e6, device)
        rows_B = torch.arange(len(lengths), device=device)
        self.inputs = StepInputs(
            input_ids_T=rows_B,
            positions_T=last_B,
            slot_mapping_T=slots_B,
            cu_seqlens_q_B1=torch.arange(len(lengths) + 1, dtype=torch.int32, device=device),
            context_lens_B=cache.context_lens_B,
            block_tables_BM=cache.block_tables_BM,
            output_rows_S=rows_B,
            query_lens=(1,) * len(lengths),
            context_lens=(*lengths[1:], max_context),
        )

    def prepared(
        self, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Rotation, StepInputs, Tensor, Tensor, float]:
        """The arguments, with a cache of their own."""
        keys_NSHC, values_NSHC = (cached_NSHC.clone().to(dtype) for cached_NSHC in self.cached)
        of_heads = self.qkv_BQ.to(dtype), self.q_norm_C.to(dtype), self.k_norm_C.to(dtype), self.rotary
        return *of_heads, self.inputs, keys_NSHC, values_NSHC, EPS


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("max_context", [700, 1100])
def test_equals_plain_torch(
    device: torch.device, dtype: torch.dtype, heads: Heads, lengths: tuple[int, ...], max_context: int
) -> None:
    step = Step(lengths, heads, device, dtype, max_context=max_context)
    prepared, expected = step.prepared(dtype), step.prepared(torch.float64)
    if device.type == "cuda" and not is_suited(prepared[5]):
        pytest.skip("does not fit into shared memory")
    arrivals_X = torch.zeros(len(lengths) * heads.num_kv, dtype=torch.int32, device=device)
    out_BQ = attend_small(*prepared, arrivals_X=arrivals_X)
    assert_close(out_BQ, attend_small_reference(*expected).to(dtype))
    assert not arrivals_X.any()
    for one, other in zip(prepared[5:7], expected[5:7], strict=True):
        assert torch.equal(one.isnan(), other.isnan()), "other slots than the tokens' own were written"
        assert_close(one.nan_to_num(), other.nan_to_num().to(dtype))
    assert torch.equal(attend_small(*step.prepared(dtype)), out_BQ), (
        "where splits are merged made a difference"
    )


def test_a_row_that_only_pads_leaves_the_cache_alone(device: torch.device) -> None:
    step = Step((41, 30), Heads(4, 2, 16), device, torch.float32, max_context=41)
    whole = step.prepared(torch.float32)
    out_BQ = attend_small(*whole)
    step.inputs.slot_mapping_T[1] = -1
    padded = step.prepared(torch.float32)
    assert torch.equal(attend_small(*padded)[0], out_BQ[0])
    for written, left in zip(whole[5:7], padded[5:7], strict=True):
        assert left.isnan().sum() - written.isnan().sum() == 2 * 16
