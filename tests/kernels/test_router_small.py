"""The router's choice for a handful of rows, from the residual stream on."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.support import assert_close, normal

from thinkstream_model.kernels.router_small import norm_route_small, norm_route_small_reference

EPS = 1e-6


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize(
    ("width", "num_experts", "top_k"),
    [(64, 8, 2), (48, 6, 3), pytest.param(2048, 128, 8, marks=pytest.mark.gpu)],
)
def test_norm_and_choice(
    device: torch.device, dtype: torch.dtype, num_rows: int, width: int, num_experts: int, top_k: int,
    renormalize: bool,
) -> None:  # fmt: skip
    residual_TD, router_ED = (
        3 * normal(num_rows, width, device, dtype),
        normal(num_experts, width, device, dtype),
    )
    gain_D = 1 + normal(1, width, device, dtype)[0]
    inputs = (residual_TD, gain_D, router_ED, EPS, top_k)
    normed_TD, ids_TK, weights_TK = norm_route_small(*inputs, renormalize=renormalize)
    expected_TD, expected_ids_TK, expected_weights_TK = norm_route_small_reference(
        *inputs, renormalize=renormalize
    )
    assert_close(normed_TD, expected_TD)
    assert torch.equal(ids_TK, expected_ids_TK)
    torch.testing.assert_close(weights_TK, expected_weights_TK, rtol=1e-3, atol=1e-5)
