"""The norm and the addition before it."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.support import assert_close, normal

from thinkstream_model.kernels.norm import (
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from thinkstream_model.ops import Addend, Parts

EPS = 1e-6
WIDTHS = [64, 48, pytest.param(2048, marks=pytest.mark.gpu)]
KINDS = ["tensor", "four parts", "weighted parts"]


def addend(kind: str, num_rows: int, width: int, device: torch.device, dtype: torch.dtype) -> Addend:
    if kind == "tensor":
        return normal(num_rows, width, device, dtype)
    if kind == "four parts":
        return Parts(
            normal(4 * num_rows, width, device, torch.float32).view(4, num_rows, width).transpose(0, 1)
        )
    values_TPD = normal(num_rows * 8, width, device, dtype).view(num_rows, 8, width)
    return Parts(values_TPD, normal(num_rows, 8, device, torch.float32).abs())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", [1, 5])
def test_rms_norm(device: torch.device, dtype: torch.dtype, num_rows: int, width: int) -> None:
    hidden_TD, weight_D = normal(num_rows, width, device, dtype), normal(1, width, device, dtype)[0]
    assert_close(rms_norm(hidden_TD, weight_D, EPS), rms_norm_reference(hidden_TD, weight_D, EPS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", [1, 5])
def test_add_rms_norm(device: torch.device, dtype: torch.dtype, num_rows: int, width: int, kind: str) -> None:
    parts = addend(kind, num_rows, width, device, dtype)
    residual_TD, weight_D = normal(num_rows, width, device, dtype), normal(1, width, device, dtype)[0]
    normed_TD, total_TD = add_rms_norm(parts, residual_TD, weight_D, EPS)
    expected_normed_TD, expected_total_TD = add_rms_norm_reference(parts, residual_TD, weight_D, EPS)
    assert torch.equal(total_TD, expected_total_TD)
    assert_close(normed_TD, expected_normed_TD)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sum_left_undone_comes_to_the_same_bits(
    device: torch.device, dtype: torch.dtype, width: int
) -> None:
    parts = addend("four parts", 6, width, device, dtype)
    assert isinstance(parts, Parts)
    done_TD = torch.zeros_like(parts.values_TPD[:, 0])
    for values_TD in parts.values_TPD.unbind(1):
        done_TD = done_TD + values_TD
    residual_TD, weight_D = normal(6, width, device, dtype), normal(1, width, device, dtype)[0]
    left = add_rms_norm(parts, residual_TD, weight_D, EPS)
    done = add_rms_norm(done_TD.to(dtype), residual_TD, weight_D, EPS)
    assert torch.equal(torch.stack(left), torch.stack(done))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_know_their_batch(device: torch.device, dtype: torch.dtype, kind: str) -> None:
    parts = addend(kind, 300, 2048, device, dtype)
    residual_TD, weight_D = normal(300, 2048, device, dtype), normal(1, 2048, device, dtype)[0]
    whole = torch.stack(add_rms_norm(parts, residual_TD, weight_D, EPS))
    for row in (0, 7, 299):
        one: Addend
        if isinstance(parts, Parts):
            weights_TP = parts.weights_TP
            of_one = None if weights_TP is None else weights_TP[row : row + 1].clone()
            one = Parts(parts.values_TPD[row : row + 1].clone(), of_one)
        else:
            one = parts[row : row + 1].clone()
        alone = torch.stack(add_rms_norm(one, residual_TD[row : row + 1], weight_D, EPS))
        assert torch.equal(whole[:, row : row + 1], alone)
