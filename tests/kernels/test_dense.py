"""Dense products: right, and a row's bits its own."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.support import assert_close, normal
from torch import Tensor

from thinkstream_model.kernels.dense import (
    linear,
    linear_in_parts,
    linear_in_parts_reference,
    linear_reference,
)
from thinkstream_model.kernels.norm import add_rms_norm
from thinkstream_model.ops import Parts

BATCHES = (5, 33, 64, 129, 256, 700)


@pytest.mark.parametrize("num_rows", [1, 5, 19, 40, 70, 130, 260])
@pytest.mark.parametrize(("depth", "num_outputs"), [(64, 48), (48, 130), (256, 64)])
def test_linear(
    device: torch.device, dtype: torch.dtype, num_rows: int, depth: int, num_outputs: int
) -> None:
    hidden_TD, weight_OD = normal(num_rows, depth, device, dtype), normal(num_outputs, depth, device, dtype)
    assert_close(linear(hidden_TD, weight_OD), linear_reference(hidden_TD, weight_OD))


def test_linear_into_float32(device: torch.device, dtype: torch.dtype) -> None:
    hidden_TD, weight_VD = normal(3, 64, device, dtype), normal(500, 64, device, dtype)
    logits_TV = linear(hidden_TD, weight_VD, out_dtype=torch.float32)
    assert logits_TV.dtype == torch.float32
    assert_close(logits_TV, linear_reference(hidden_TD, weight_VD, out_dtype=torch.float32))


def test_linear_takes_rows_apart(device: torch.device, dtype: torch.dtype) -> None:
    both_T2D, weight_OD = normal(7, 128, device, dtype), normal(32, 64, device, dtype)
    assert_close(linear(both_T2D[:, 64:], weight_OD), linear_reference(both_T2D[:, 64:], weight_OD))


@pytest.mark.parametrize("num_rows", [1, 19, 260])
@pytest.mark.parametrize("depth", [64, 48, 200, 512])
def test_linear_in_parts(device: torch.device, dtype: torch.dtype, num_rows: int, depth: int) -> None:
    hidden_TD, weight_OD = normal(num_rows, depth, device, dtype), normal(40, depth, device, dtype)
    out = linear_in_parts(hidden_TD, weight_OD)
    assert isinstance(out, Parts) == (num_rows <= 256)
    summed_TO = out.values_TPD.sum(1).to(dtype) if isinstance(out, Parts) else out
    assert_close(summed_TO, linear_in_parts_reference(hidden_TD, weight_OD))


@pytest.mark.gpu
@pytest.mark.parametrize(("depth", "width"), [(4096, 2048), (64, 64), (256, 96), (200, 40)])
def test_rows_do_not_know_their_batch(
    device: torch.device, dtype: torch.dtype, depth: int, width: int
) -> None:
    hidden_TD, weight_OD = normal(max(BATCHES), depth, device, dtype), normal(width, depth, device, dtype)
    residual_TO, gain_O = normal(max(BATCHES), width, device, dtype), normal(1, width, device, dtype)[0]

    def added(num_rows: int) -> Tensor:
        parts = linear_in_parts(hidden_TD[:num_rows], weight_OD)
        return torch.stack(add_rms_norm(parts, residual_TO[:num_rows], gain_O, 1e-6))

    alone_TO, added_alone = linear(hidden_TD[:1], weight_OD), added(1)
    assert_close(alone_TO, linear_reference(hidden_TD[:1], weight_OD))
    for num_rows in BATCHES:
        assert torch.equal(linear(hidden_TD[:num_rows], weight_OD)[:1], alone_TO), num_rows
        assert torch.equal(added(num_rows)[:, :1], added_alone), num_rows
    last_TO = linear(hidden_TD[-1:], weight_OD)
    assert torch.equal(linear(hidden_TD, weight_OD)[-1:], last_TO)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 17, 64, 200, 300, 1000, 8192])
def test_full_shape(device: torch.device, num_rows: int) -> None:
    hidden_TD = normal(num_rows, 2048, device, torch.bfloat16)
    qkv_QD = normal(5120, 2048, device, torch.bfloat16)
    assert_close(linear(hidden_TD, qkv_QD), linear_reference(hidden_TD, qkv_QD))
    attended_TQ, out_DQ = (
        normal(num_rows, 4096, device, torch.bfloat16),
        normal(2048, 4096, device, torch.bfloat16),
    )
    out = linear_in_parts(attended_TQ, out_DQ)
    summed_TD = out.values_TPD.sum(1).bfloat16() if isinstance(out, Parts) else out
    assert_close(summed_TD, linear_in_parts_reference(attended_TQ, out_DQ))
    if num_rows <= 200:
        lm_head_VD = normal(152064, 2048, device, torch.bfloat16)
        logits_TV = linear(hidden_TD, lm_head_VD, out_dtype=torch.float32)
        assert_close(logits_TV, linear_reference(hidden_TD, lm_head_VD, out_dtype=torch.float32))
