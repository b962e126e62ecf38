"""Dense products of a handful of rows, with the norm before them and the addition behind."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.support import assert_close, normal

from thinkstream_model.kernels.dense_small import (
    linear_add_small,
    linear_add_small_reference,
    norm_linear_small,
    norm_linear_small_reference,
)

EPS = 1e-6
SHAPES = [
    (64, 48),
    (48, 130),
    pytest.param((2048, 5120), marks=pytest.mark.gpu),
    pytest.param((2048, 128), marks=pytest.mark.gpu),
    pytest.param((4096, 2048), marks=pytest.mark.gpu),
    pytest.param((2048, 152064), marks=pytest.mark.gpu),
]
Shape = tuple[int, int]


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_and_product(device: torch.device, dtype: torch.dtype, shape: Shape, num_rows: int) -> None:
    depth, num_outputs = shape
    residual_TD, weight_OD = (
        3 * normal(num_rows, depth, device, dtype),
        normal(num_outputs, depth, device, dtype),
    )
    gain_D = 1 + normal(1, depth, device, dtype)[0]
    for out_dtype in (None, torch.float32):
        out_TO, normed_TD = norm_linear_small(residual_TD, gain_D, weight_OD, EPS, out_dtype=out_dtype)
        expected_TO, expected_TD = norm_linear_small_reference(
            residual_TD, gain_D, weight_OD, EPS, out_dtype=out_dtype
        )
        assert_close(normed_TD, expected_TD)
        assert_close(out_TO.to(dtype), expected_TO.to(dtype))
        assert out_TO.dtype == expected_TO.dtype


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_sum(device: torch.device, dtype: torch.dtype, shape: Shape, num_rows: int) -> None:
    depth, num_outputs = shape
    hidden_TD, weight_OD = normal(num_rows, depth, device, dtype), normal(num_outputs, depth, device, dtype)
    residual_TO = normal(num_rows, num_outputs, device, dtype)
    out_TO = linear_add_small(hidden_TD, weight_OD, residual_TO)
    assert_close(out_TO, linear_add_small_reference(hidden_TD, weight_OD, residual_TO))
