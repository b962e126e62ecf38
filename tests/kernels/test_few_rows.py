"""Hopper's own kernels for a few rows: the bits of those for every number of rows, and where they are not."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from tests.kernels.support import normal
from tests.kernels.test_experts import FULL, ids_of, weights_of
from torch import Tensor

from thinkstream_model.kernels import few_rows, few_rows_hopper
from thinkstream_model.kernels.dense import linear, linear_in_parts
from thinkstream_model.kernels.experts import down, gate_up
from thinkstream_model.kernels.optional_gluon import OptionalGluon
from thinkstream_model.kernels.router import lists_of, route
from thinkstream_model.ops import Parts

ROW_COUNTS = [1, 2, 3, 5, 8]
BFLOAT16 = torch.bfloat16


@pytest.fixture
def own(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Their products, counted."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("no Hopper")
    multiply = Mock(wraps=few_rows_hopper.multiply)
    monkeypatch.setattr(few_rows_hopper, "multiply", multiply)
    return multiply


def without_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows.hopper_kernels, "is_usable", False)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", ROW_COUNTS)
@pytest.mark.parametrize("num_outputs", [64, 5_120])
def test_a_product_has_the_same_bits(
    own: Mock, device: torch.device, num_rows: int, num_outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_OD = normal(num_outputs, 2_048, device, BFLOAT16)
    hidden_TD = normal(num_rows, 2_048, device, BFLOAT16)

    out_TO = linear(hidden_TD, weight_OD)
    assert own.call_count == 1
    without_own(monkeypatch)
    assert torch.equal(out_TO, linear(hidden_TD, weight_OD))


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", ROW_COUNTS)
def test_a_product_in_parts_has_the_same_bits(
    own: Mock, device: torch.device, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_OD, hidden_TD = normal(2_048, 4_096, device, BFLOAT16), normal(num_rows, 4_096, device, BFLOAT16)
    parts = linear_in_parts(hidden_TD, weight_OD)
    assert own.call_count == 1
    without_own(monkeypatch)
    expected = linear_in_parts(hidden_TD, weight_OD)
    assert isinstance(parts, Parts) and isinstance(expected, Parts)
    assert torch.equal(parts.values_TPD, expected.values_TPD)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", ROW_COUNTS)
def test_rows_apart_have_the_same_bits(
    own: Mock, device: torch.device, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_OD, both_T2D = normal(64, 256, device, BFLOAT16), normal(num_rows, 512, device, BFLOAT16)
    out_TO = linear(both_T2D[:, 256:], weight_OD)
    assert own.call_count == 1
    without_own(monkeypatch)
    assert torch.equal(out_TO, linear(both_T2D[:, 256:], weight_OD))


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", ROW_COUNTS)
def test_the_routers_choice_is_the_same(
    own: Mock, device: torch.device, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    router_ED, hidden_TD = normal(128, 2_048, device, BFLOAT16), normal(num_rows, 2_048, device, BFLOAT16)
    chosen = route(hidden_TD, router_ED, 8, renormalize=True, with_lists=False)
    assert own.call_count == 1
    without_own(monkeypatch)
    expected = route(hidden_TD, router_ED, 8, renormalize=True, with_lists=False)
    for tensor, expected_tensor in zip(chosen[:2], expected[:2], strict=True):
        assert torch.equal(tensor, expected_tensor)


@pytest.mark.gpu
@pytest.mark.parametrize("skew", [0.0, 20.0])
@pytest.mark.parametrize("num_rows", ROW_COUNTS)
@pytest.mark.parametrize("shape", [FULL, (256, 128, 5, 3)])
def test_experts_have_the_same_bits(
    own: Mock, device: torch.device, shape: tuple[int, int, int, int], num_rows: int, skew: float
) -> None:
    gate_up_E2ID, down_EDI = weights_of(shape, device, BFLOAT16)
    slots_TK = ids_of(num_rows, shape, device, skew=skew)
    hidden_TD = normal(num_rows, shape[0], device, BFLOAT16)
    outputs_TKD = few_rows.try_experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI)
    assert outputs_TKD is not None
    assert torch.equal(outputs_TKD, listed_experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI))


@pytest.mark.gpu
def test_what_has_no_slot_is_left_alone(own: Mock, device: torch.device) -> None:
    gate_up_E2ID, down_EDI = weights_of(FULL, device, BFLOAT16)
    slots_TK = torch.tensor([[3, -1], [128, 3], [-1, -1]], dtype=torch.int32, device=device)
    hidden_TD = normal(3, FULL[0], device, BFLOAT16)
    outputs_TKD = few_rows.try_experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI)
    assert outputs_TKD is not None
    expected_TKD = listed_experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI)
    assert torch.equal(outputs_TKD[slots_TK == 3], expected_TKD[slots_TK == 3])


def listed_experts(hidden_TD: Tensor, slots_TK: Tensor, gate_up_E2ID: Tensor, down_EDI: Tensor) -> Tensor:
    lists, top_k = lists_of(slots_TK, len(down_EDI)), slots_TK.shape[1]
    return down(gate_up(hidden_TD, gate_up_E2ID, lists, top_k), down_EDI, lists, top_k)


def test_they_are_not_for_what_other_devices_have() -> None:
    hidden_TD, weight_OD = torch.zeros(1, 128).bfloat16(), torch.zeros(64, 128).bfloat16()
    assert not few_rows.are_few(hidden_TD)
    assert not few_rows.try_multiply(hidden_TD, weight_OD, torch.zeros(1, 1, 64).bfloat16())
    experts_EDD = torch.zeros(2, 128, 128).bfloat16()
    assert few_rows.try_experts(hidden_TD, torch.zeros(1, 1).int(), experts_EDD, experts_EDD) is None


@pytest.mark.parametrize(("num_rows", "dtype"), [(9, BFLOAT16), (1, torch.float32)])
def test_they_are_for_few_rows_of_one_kind(
    num_rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_rows, "is_hopper", Mock(return_value=True))
    assert few_rows.are_few(torch.zeros(8, 128).bfloat16())
    assert not few_rows.are_few(torch.zeros(num_rows, 128, dtype=dtype))


@pytest.mark.parametrize(
    ("depth", "num_outputs", "num_parts", "is_suited"),
    [
        (2_048, 5_120, 1, True),
        (4_096, 2_048, 4, True),
        (2_048, 128, 8, True),
        (2_048, 16_384, 1, False),  # more programs than processors
        (2_048, 96, 1, False),
        (768, 2_048, 1, False),
        (512, 64, 8, False),
    ],
)
def test_products_that_suit_them(depth: int, num_outputs: int, num_parts: int, is_suited: bool) -> None:
    hidden_TD, weight_OD = torch.empty(2, depth).bfloat16(), torch.empty(num_outputs, depth).bfloat16()
    assert (
        few_rows_hopper.is_suited(hidden_TD, weight_OD, torch.empty(num_parts, 2, num_outputs)) == is_suited
    )


def test_rows_that_lie_askew_do_not_suit_them() -> None:
    hidden_TD, weight_OD = torch.empty(2, 260).bfloat16(), torch.empty(64, 256).bfloat16()
    out_PTO = torch.empty(1, 2, 64)
    assert not few_rows_hopper.is_suited(hidden_TD[:, :256], weight_OD, out_PTO)
    assert few_rows_hopper.is_suited(hidden_TD[:, :256].contiguous(), weight_OD, out_PTO)


def test_those_for_every_device_stand_in_for_what_cannot_be_compiled(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_TD, weight_OD = (normal(n, 64, device, torch.float32) for n in (3, 48))
    expected_TO = linear(hidden_TD, weight_OD)
    multiply = Mock(side_effect=TypeError("of 3 arguments"))
    monkeypatch.setattr(few_rows, "hopper_kernels", OptionalGluon("tests", "nothing is slower"))
    monkeypatch.setattr(few_rows, "_is_kind", Mock(return_value=True))
    monkeypatch.setattr(few_rows_hopper, "is_suited", Mock(return_value=True))
    monkeypatch.setattr(few_rows_hopper, "multiply", multiply)
    for _ in range(2):
        assert torch.equal(linear(hidden_TD, weight_OD), expected_TO)
    assert multiply.call_count == 1
