"""Top-p alone: the threshold that many programs find together is a sort's, whatever the row looks like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thinkstream_model.kernels import nucleus
from thinkstream_model.kernels.threshold import lowest_kept
from thinkstream_model.sampler import SamplingInputs

TOP_P = [1e-9, 0.1, 0.5, 0.95, 0.999, 1 - 2**-24]


def _inputs(rows: list[tuple[float, float]], device: torch.device) -> SamplingInputs:
    """Rows of (temperature, top-p)."""
    temperature, top_p = zip(*rows, strict=True)
    numbers = torch.arange(len(rows), device=device)
    return SamplingInputs(
        temperature_B=torch.tensor(temperature, device=device),
        top_p_B=torch.tensor(top_p, device=device),
        top_k_B=torch.zeros_like(numbers),
        min_p_B=torch.zeros(len(rows), device=device),
        seed_B=numbers,
        index_B=numbers + 1,
    )


def _row(name: str, num_ids: int, device: torch.device) -> Tensor:
    random_V = torch.randn(num_ids, device=device, generator=torch.Generator(device).manual_seed(num_ids))
    ids_V = torch.arange(num_ids, device=device)
    return {
        "normal": random_V,
        "flat": random_V / 100 - 50,
        "peaked": torch.where(ids_V % 50 == 7, 4 * random_V + 9, random_V - 3),
        "one chunk apart": torch.where(ids_V < 1500, random_V + 4, random_V),
        "rounded": (random_V * 8).round() / 8,
        "half impossible": torch.where(ids_V % 2 == 0, random_V, float("-inf")),
        "two values": torch.where(ids_V % 2 == 0, 1.0, -1.0),
        "equal": torch.full_like(random_V, -0.0),
        "huge": random_V * 1e37,
    }[name]


ROWS = [
    "normal",
    "flat",
    "peaked",
    "one chunk apart",
    "rounded",
    "half impossible",
    "two values",
    "equal",
    "huge",
]


@pytest.mark.parametrize("num_ids", [300, 2500, pytest.param(151_669, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ROWS)
def test_keeps_the_likeliest_until_they_have_their_share(
    device: torch.device, name: str, num_ids: int
) -> None:
    inputs = _inputs([(0.5 + place % 2, top_p) for place, top_p in enumerate(TOP_P)], device)
    logits_BV = _row(name, num_ids, device).repeat(len(TOP_P), 1)
    lowest_B1 = lowest_kept(logits_BV, inputs, num_valid_ids=num_ids).unsqueeze(1)
    scaled_BV = logits_BV * (1 / inputs.temperature_B.unsqueeze(1))
    share_BV = scaled_BV.double().softmax(dim=1)
    least_B1 = scaled_BV.where(scaled_BV >= lowest_B1, float("inf")).min(dim=1, keepdim=True).values
    kept_B = share_BV.where(scaled_BV >= least_B1, 0.0).sum(dim=1)
    without_the_least_B = share_BV.where(scaled_BV > least_B1, 0.0).sum(dim=1)
    assert torch.all(kept_B >= inputs.top_p_B * (1 - 1e-5))
    assert torch.all(without_the_least_B < inputs.top_p_B * (1 + 1e-5))


def test_a_row_is_the_same_however_many_programs_share_it(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_BV = torch.stack([_row(name, 9001, device) for name in ROWS])
    inputs = _inputs([(1.0, 0.9)] * len(ROWS), device)
    together_B = lowest_kept(logits_BV, inputs, num_valid_ids=9001)
    for num_programs in (1, 3 * len(ROWS)):
        monkeypatch.setattr(nucleus, "_NUM_PROGRAMS", num_programs)
        monkeypatch.setattr(nucleus, "_MIN_PROGRAMS_OF_ROW", 1)
        assert torch.equal(lowest_kept(logits_BV, inputs, num_valid_ids=9001), together_B)
