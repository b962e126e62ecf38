"""Top-p alone: the threshold that many programs find together is a sort's, whatever the row looks like."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from thinkstream_model.kernels import nucleus
from thinkstream_model.kernels.float_search import value_of
from thinkstream_model.kernels.threshold import lowest_kept
from thinkstream_model.sampler import SamplingInputs

CHUNK_IDS, NUM_SLOTS = 2048, 512
TOP_P = [1e-9, 0.1, 0.5, 0.95, 0.999, 1 - 2**-24]


@triton.jit
def _store_threshold(
    bracket_B3: tl.tensor,
    counts_BC: tl.tensor,
    values_BCS: tl.tensor,
    blocks_BK: tl.tensor,
    highest_B: tl.tensor,
    threshold_B: tl.tensor,
    is_found_B: tl.tensor,
    num_chunks: tl.tensor,
    num_blocks: tl.tensor,
    CHUNKS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    scale, gathered = (tl.load(highest_B + row), 1.0), (bracket_B3, counts_BC, values_BCS)
    blocks_row = blocks_BK + row * num_blocks
    key, is_found = nucleus.gathered_key(gathered, blocks_row, scale, row, num_chunks, CHUNKS, 64, 128)
    tl.store(threshold_B + row, value_of(key))
    tl.store(is_found_B + row, is_found)


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


@pytest.mark.parametrize("name", ["normal", "peaked"])
def test_the_few_values_gathered_have_the_threshold(device: torch.device, name: str) -> None:
    top_p = [0.1, 0.5, 0.95, 0.999]
    row_V = _row(name, 9001, device)
    gathered = _gather(row_V, top_p)
    low_B, high_B, _ = gathered.bracket_B3.unbind(dim=1)
    assert gathered.counts_BC.max() <= NUM_SLOTS
    found_B, is_found_B = _threshold_of(gathered, row_V)
    assert torch.all(is_found_B)
    sorted_V = row_V.sort(descending=True).values
    share_V = sorted_V.double().softmax(dim=0).cumsum(dim=0)
    threshold_B = sorted_V[torch.searchsorted(share_V, torch.tensor(top_p, device=device).double())]
    assert torch.all(low_B <= threshold_B) and torch.all(threshold_B < high_B)
    torch.testing.assert_close(found_B, threshold_B, rtol=0.0, atol=0.01)


def test_values_that_do_not_fit_are_counted_and_not_searched(device: torch.device) -> None:
    row_V = _row("equal", 9001, device)
    gathered = _gather(row_V, [0.1, 0.999])
    assert torch.all(gathered.counts_BC.max(dim=1).values > NUM_SLOTS)
    _, is_found_B = _threshold_of(gathered, row_V)
    assert not torch.any(is_found_B)


def _gather(row_V: Tensor, top_p: list[float]) -> nucleus.Gathered:
    """What is gathered of a row at temperature 1 for each top-p."""
    chunks = [row_V[first : first + CHUNK_IDS] for first in range(0, len(row_V), CHUNK_IDS)]
    peaks_C = torch.stack([chunk_N.max() for chunk_N in chunks])
    masses_C = torch.stack([(chunk_N - chunk_N.max()).exp().sum() for chunk_N in chunks])
    return nucleus.gather_nucleus(
        row_V.repeat(len(top_p), 1),
        _inputs([(1.0, share) for share in top_p], row_V.device),
        peaks_C.repeat(len(top_p), 1),
        masses_C.repeat(len(top_p), 1),
        num_valid_ids=len(row_V),
        chunk_ids=CHUNK_IDS,
    )


def _threshold_of(gathered: nucleus.Gathered, row_V: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold of each row, and whether what was gathered has it."""
    num_rows, num_chunks, num_slots = gathered.values_BCS.shape
    num_blocks = num_chunks * num_slots // 128
    blocks_BK = torch.empty(num_rows, num_blocks, dtype=torch.int32, device=row_V.device)
    threshold_B = torch.empty(num_rows, device=row_V.device)
    is_found_B = torch.zeros(num_rows, dtype=torch.bool, device=row_V.device)
    _store_threshold[(num_rows,)](
        *gathered, blocks_BK, row_V.max().expand(num_rows).contiguous(), threshold_B, is_found_B,
        num_chunks, num_blocks, CHUNKS=triton.next_power_of_2(num_chunks),
    )  # fmt: skip
    return threshold_B, is_found_B
