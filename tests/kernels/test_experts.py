"""The experts' products, over lists."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.support import assert_close, normal
from torch import Tensor

from thinkstream_model.kernels.experts import (
    down,
    down_reference,
    experts,
    gate_up,
    gate_up_reference,
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


@pytest.mark.parametrize("num_rows", [3, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_halves_together(device: torch.device, dtype: torch.dtype, shape: Shape, num_rows: int) -> None:
    width, _, num_experts, top_k = shape
    gate_up_E2ID, down_EDI = weights_of(shape, device, dtype)
    hidden_TD, slots_TK = normal(num_rows, width, device, dtype), ids_of(num_rows, shape, device)
    slots_TK[0, 0], slots_TK[-1, -1] = -1, num_experts  # nobody's
    lists = lists_of(slots_TK, num_experts)
    inner_PI = gate_up_reference(hidden_TD, gate_up_E2ID, lists, top_k)
    expected_TKD = down_reference(inner_PI, down_EDI, lists, top_k)
    is_here_TK = (slots_TK >= 0) & (slots_TK < num_experts)
    for given in (lists, None):
        outputs_TKD = experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI, given)
        assert outputs_TKD.shape == expected_TKD.shape
        assert_close(outputs_TKD[is_here_TK], expected_TKD[is_here_TK])


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
