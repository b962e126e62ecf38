"""The experts' products, over lists and for a handful of rows."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
import torch
from tests.kernels.support import assert_close, normal
from torch import Tensor

from thinkstream_model.kernels import experts_small
from thinkstream_model.kernels.experts import down, down_reference, gate_up, gate_up_reference
from thinkstream_model.kernels.experts_small import (
    down_small,
    down_small_reference,
    gate_up_small,
    gate_up_small_reference,
)
from thinkstream_model.kernels.router import lists_of

FULL = (2048, 768, 128, 8)
TOYS = [(64, 32, 4, 2), (48, 40, 7, 3), (64, 256, 5, 2)]
SHAPES = [*TOYS, pytest.param(FULL, marks=pytest.mark.gpu)]
Shape = tuple[int, int, int, int]


def weights_of(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    width, inner, num_experts, _ = shape
    gate_up_ED = normal(num_experts * 2 * inner, width, device, dtype)
    down_ED = normal(num_experts * width, inner, device, dtype)
    return gate_up_ED.view(num_experts, 2 * inner, width), down_ED.view(num_experts, width, inner)


def ids_of(num_rows: int, shape: Shape, device: torch.device, *, skew: float = 0.0) -> Tensor:
    """Distinct experts for each row; with skew the last one gets none and the first ones get most."""
    _, _, num_experts, top_k = shape
    generator = torch.Generator().manual_seed(num_rows)
    scores_TE = torch.rand(num_rows, num_experts, generator=generator)
    scores_TE -= skew * torch.arange(num_experts) / num_experts
    scores_TE[:, -1] = -1000
    return scores_TE.topk(top_k).indices.int().to(device)


@pytest.mark.parametrize("skew", [0.0, 20.0])
@pytest.mark.parametrize("num_rows", [1, 17, 90])
@pytest.mark.parametrize("shape", SHAPES)
def test_experts(device: torch.device, dtype: torch.dtype, shape: Shape, num_rows: int, skew: float) -> None:
    check_experts(device, dtype, shape, num_rows, skew)


@pytest.mark.gpu
@pytest.mark.parametrize("skew", [0.0, 3.0])
@pytest.mark.parametrize("num_rows", [200, 400, 1000, 3000])
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_of_many_rows(
    device: torch.device, dtype: torch.dtype, shape: Shape, num_rows: int, skew: float
) -> None:
    check_experts(device, dtype, shape, num_rows, skew)


def check_experts(device: torch.device, dtype: torch.dtype, shape: Shape, num_rows: int, skew: float) -> None:
    width, _, num_experts, top_k = shape
    gate_up_E2ID, down_EDI = weights_of(shape, device, dtype)
    lists = lists_of(ids_of(num_rows, shape, device, skew=skew), num_experts)
    hidden_TD = normal(num_rows, width, device, dtype)
    inner_PI = gate_up(hidden_TD, gate_up_E2ID, lists, top_k)
    assert_close(inner_PI, gate_up_reference(hidden_TD, gate_up_E2ID, lists, top_k))
    outputs_TKD = down(inner_PI, down_EDI, lists, top_k)
    assert outputs_TKD.shape == (num_rows, top_k, width)
    assert_close(outputs_TKD, down_reference(inner_PI, down_EDI, lists, top_k))


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_small_experts(device: torch.device, dtype: torch.dtype, shape: Shape, num_rows: int) -> None:
    gate_up_E2ID, down_EDI = weights_of(shape, device, dtype)
    ids_TK, hidden_TD = ids_of(num_rows, shape, device), normal(num_rows, shape[0], device, dtype)
    residual_TD = normal(num_rows, shape[0], device, dtype)
    weights_TK = torch.rand(ids_TK.shape, generator=torch.Generator().manual_seed(1)).to(device)
    inner_PI = gate_up_small(hidden_TD, gate_up_E2ID, ids_TK)
    assert_close(inner_PI, gate_up_small_reference(hidden_TD, gate_up_E2ID, ids_TK))
    weighed = (inner_PI, down_EDI, ids_TK, weights_TK, residual_TD)
    assert_close(down_small(*weighed), down_small_reference(*weighed))


@pytest.mark.gpu
def test_rows_do_not_know_their_batch(device: torch.device, dtype: torch.dtype) -> None:
    width, _, num_experts, top_k = FULL
    gate_up_E2ID, down_EDI = weights_of(FULL, device, dtype)
    ids_TK, hidden_TD = ids_of(2000, FULL, device), normal(2000, width, device, dtype)

    def outputs(num_rows: int) -> tuple[Tensor, Tensor]:
        lists = lists_of(ids_TK[:num_rows], num_experts)
        inner_PI = gate_up(hidden_TD[:num_rows], gate_up_E2ID, lists, top_k)
        return inner_PI[:top_k], down(inner_PI, down_EDI, lists, top_k)[:1]

    inner_KI, outputs_1KD = outputs(1)
    for num_rows in (5, 16, 33, 64, 65, 129, 256, 257, 700, 2000, 2000):
        inner, out = outputs(num_rows)
        assert torch.equal(inner, inner_KI), num_rows
        assert torch.equal(out, outputs_1KD), num_rows


@pytest.mark.gpu
def test_small_rows_share_an_expert(device: torch.device) -> None:
    gate_up_E2ID, _ = weights_of(FULL, device, torch.bfloat16)
    ids_TK, hidden_TD = ids_of(2, FULL, device), normal(2, FULL[0], device, torch.bfloat16)
    ids_TK[1] = ids_TK[0].flip(0)
    inner_PI = gate_up_small(hidden_TD, gate_up_E2ID, ids_TK)
    assert torch.equal(inner_PI[: FULL[3]], gate_up_small(hidden_TD[:1], gate_up_E2ID, ids_TK[:1]))
    assert_close(inner_PI, gate_up_small_reference(hidden_TD, gate_up_E2ID, ids_TK))


@pytest.mark.parametrize(("is_nvidia", "limit"), [(True, 128), (False, None)])
@pytest.mark.parametrize("is_dependent", [True, False])
def test_launching_apart_leaves_the_kernel_as_it_is(
    monkeypatch: pytest.MonkeyPatch, is_nvidia: bool, is_dependent: bool, limit: int | None
) -> None:
    kernel = MagicMock()
    monkeypatch.setattr(experts_small, "_down_kernel", kernel)
    monkeypatch.setattr(experts_small, "is_nvidia", MagicMock(return_value=is_nvidia))
    monkeypatch.setattr(experts_small, "is_dependent", MagicMock(return_value=is_dependent))
    rows_PI, down_EDI = torch.zeros(2, 256).bfloat16(), torch.zeros(4, 32, 256).bfloat16()
    ids_TK, residual_TD = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 32).bfloat16()
    down_small(rows_PI, down_EDI, ids_TK, torch.ones(1, 2), residual_TD)
    (launch,) = kernel.__getitem__.return_value.call_args_list
    assert launch.kwargs.get("maxnreg") == limit
