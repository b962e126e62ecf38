"""Hopper's own products of many rows: the bits of the kernels for every device, and who is asked."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from tests.kernels.support import normal
from tests.kernels.test_experts import FULL, Shape, ids_of, weights_of
from torch import Tensor

from thinkstream_model.kernels import many_rows, many_rows_hopper
from thinkstream_model.kernels.dense import linear, linear_in_parts
from thinkstream_model.kernels.experts import down, gate_up
from thinkstream_model.kernels.optional_gluon import OptionalGluon
from thinkstream_model.kernels.router import lists_of

SKEWED, ONE_HAS_ALL = 3.0, "one has all"
ROUTINGS = [
    (8_192, 0.0), (8_192, SKEWED), (4_096, 1.0), (2_000, ONE_HAS_ALL), (1_024, 0.0), (1_025, 20.0),
]  # fmt: skip
"""Rows of the step, and how unevenly the experts share them."""

NARROW = (320, 192, 6, 2)

MANY_OUTPUTS = 65_728
"""Of a vocabulary, and not in whole tiles."""


def routed(num_rows: int, skew: float | str, shape: Shape, device: torch.device) -> Tensor:
    if skew == ONE_HAS_ALL:
        return torch.arange(shape[3], dtype=torch.int32, device=device).repeat(num_rows, 1)
    return ids_of(num_rows, shape, device, skew=float(skew))


@pytest.fixture
def own(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Hopper's kernel, whose calls are counted."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("no Hopper")
    own = SimpleNamespace(
        is_suited=many_rows_hopper.is_suited,
        multiply_all=Mock(wraps=many_rows_hopper.multiply_all),
        multiply_listed=Mock(wraps=many_rows_hopper.multiply_listed),
    )
    monkeypatch.setattr(many_rows, "many_rows_hopper", own)
    return own


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [FULL, NARROW])
@pytest.mark.parametrize(("num_rows", "skew"), ROUTINGS)
def test_experts_have_the_bits_of_the_kernels_for_every_device(
    num_rows: int,
    skew: float | str,
    shape: Shape,
    device: torch.device,
    own: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate_up_E2ID, down_EDI = weights_of(shape, device, torch.bfloat16)
    lists = lists_of(routed(num_rows, skew, shape, device), shape[2])
    hidden_TD = normal(num_rows, shape[0], device, torch.bfloat16)

    def products() -> tuple[Tensor, Tensor]:
        inner_PI = gate_up(hidden_TD, gate_up_E2ID, lists, shape[3])
        return inner_PI, down(inner_PI, down_EDI, lists, shape[3])

    inner_PI, outputs_TKD = products()
    assert own.multiply_listed.call_count == 2
    monkeypatch.setattr(many_rows.hopper_kernels, "is_usable", False)
    expected_PI, expected_TKD = products()
    assert torch.equal(inner_PI, expected_PI)
    assert torch.equal(outputs_TKD, expected_TKD)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1_024, 1_500, 4_096, 8_192])
@pytest.mark.parametrize(("depth", "width"), [(2_048, 5_120), (4_096, 2_048), (256, 192), (768, 64)])
def test_dense_products_have_the_bits_of_the_kernel_for_every_device(
    num_rows: int,
    depth: int,
    width: int,
    device: torch.device,
    own: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden_TD = normal(num_rows, depth, device, torch.bfloat16)
    weight_OD = normal(width, depth, device, torch.bfloat16)
    whole_TO, in_parts = linear(hidden_TD, weight_OD), linear_in_parts(hidden_TD, weight_OD)
    assert own.multiply_all.call_count == 2
    monkeypatch.setattr(many_rows.hopper_kernels, "is_usable", False)
    assert torch.equal(whole_TO, linear(hidden_TD, weight_OD))
    expected = linear_in_parts(hidden_TD, weight_OD)
    assert isinstance(in_parts, Tensor) and isinstance(expected, Tensor)
    assert torch.equal(in_parts, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [65, 100, 128, 192, 200, 256])
@pytest.mark.parametrize("depth", [192, 2_048])
def test_logits_have_the_bits_of_the_kernel_for_every_device(
    num_rows: int, depth: int, device: torch.device, own: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_SD = normal(num_rows, depth, device, torch.bfloat16)
    lm_head_VD = normal(MANY_OUTPUTS, depth, device, torch.bfloat16)
    logits_SV = linear(hidden_SD, lm_head_VD, out_dtype=torch.float32)
    assert own.multiply_all.call_count == 1
    monkeypatch.setattr(many_rows.hopper_kernels, "is_usable", False)
    assert torch.equal(logits_SV, linear(hidden_SD, lm_head_VD, out_dtype=torch.float32))


def test_is_not_for_what_other_devices_have() -> None:
    rows_TD, weight_OD = torch.zeros(1, 64).bfloat16(), torch.zeros(64, 64).bfloat16()
    assert not many_rows_hopper.is_suited(rows_TD, weight_OD, rows_TD, 1)


@pytest.mark.parametrize(
    ("rows", "weights", "out", "num_parts"),
    [
        (torch.zeros(8, 64), torch.zeros(64, 64), torch.zeros(8, 64), 1),
        (torch.zeros(8, 48).bfloat16(), torch.zeros(64, 48).bfloat16(), torch.zeros(8, 64).bfloat16(), 1),
        (torch.zeros(8, 64).bfloat16(), torch.zeros(40, 64).bfloat16(), torch.zeros(8, 40).bfloat16(), 1),
        (torch.zeros(8, 64).bfloat16(), torch.zeros(64, 64).bfloat16(), torch.zeros(8, 64).half(), 1),
        (torch.zeros(8, 128).bfloat16(), torch.zeros(64, 128).bfloat16(), torch.zeros(8, 64).bfloat16(), 4),
        (
            torch.zeros(8, 72).bfloat16()[:, 8:],
            torch.zeros(64, 64).bfloat16(),
            torch.zeros(8, 64).bfloat16(),
            1,
        ),
    ],
    ids=["float32", "half a step", "half a tile", "into float16", "parts of half a step", "rows apart"],
)
def test_is_not_for_what_is_laid_otherwise(
    rows: Tensor, weights: Tensor, out: Tensor, num_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_rows_hopper, "is_hopper", Mock(return_value=True))
    fitting_TD, fitting_OD = torch.zeros(8, 256).bfloat16(), torch.zeros(64, 256).bfloat16()
    assert many_rows_hopper.is_suited(fitting_TD, fitting_OD, torch.zeros(8, 64).bfloat16(), 4)
    assert not many_rows_hopper.is_suited(rows, weights, out, num_parts)


def other_hopper(error: Exception | None = None) -> SimpleNamespace:
    """A kernel for whatever comes, that fails where there is an error."""
    return SimpleNamespace(
        is_suited=Mock(return_value=True),
        multiply_all=Mock(side_effect=error),
        multiply_listed=Mock(side_effect=error),
    )


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_rows, "_MIN_ROWS", 20)
    monkeypatch.setattr(many_rows, "hopper_kernels", OptionalGluon("tests", "nothing is slower"))


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize(("num_rows", "num_calls"), [(19, 0), (20, 1)])
def test_few_rows_are_not_its(
    num_rows: int, num_calls: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper = other_hopper()
    monkeypatch.setattr(many_rows, "many_rows_hopper", hopper)
    hidden_TD, (gate_up_E2ID, down_EDI) = (
        normal(num_rows, 64, device, torch.float32),
        weights_of((64, 32, 4, 2), device, torch.float32),
    )
    lists = lists_of(ids_of(num_rows, (64, 32, 4, 2), device), 4)
    linear(hidden_TD, gate_up_E2ID[0])
    down(gate_up(hidden_TD, gate_up_E2ID, lists, 2), down_EDI, lists, 2)
    assert hopper.multiply_all.call_count == num_calls
    assert hopper.multiply_listed.call_count == 2 * num_calls


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_calls"), [(8, 65_536, 0), (9, 65_536, 1), (19, 65_472, 0)]
)
def test_rows_are_many_sooner_where_outputs_are(
    num_rows: int, num_outputs: int, num_calls: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper = other_hopper()
    monkeypatch.setattr(many_rows, "many_rows_hopper", hopper)
    monkeypatch.setattr(many_rows, "_MIN_ROWS_OF_MANY_OUTPUTS", 9)
    linear(normal(num_rows, 16, device, torch.float32), normal(num_outputs, 16, device, torch.float32))
    assert hopper.multiply_all.call_count == num_calls


@pytest.mark.usefixtures("few_are_many")
def test_those_for_every_device_stand_in_for_what_cannot_be_compiled(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_TD, weight_OD = normal(20, 64, device, torch.float32), normal(32, 64, device, torch.float32)
    expected_TO = linear(hidden_TD[:19], weight_OD)
    hopper = other_hopper(TypeError("of 3 arguments"))
    monkeypatch.setattr(many_rows, "many_rows_hopper", hopper)
    for _ in range(2):
        assert torch.equal(linear(hidden_TD, weight_OD)[:19], expected_TO)
    assert hopper.multiply_all.call_count == 1
