"""The sampling kernels against the torch sampler: same words, same thresholds, same tokens."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false
# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from thinkstream_model.kernels import philox as kernels
from thinkstream_model.kernels.sampling import sample_tokens, sample_tokens_reference
from thinkstream_model.kernels.threshold import lowest_kept, lowest_kept_reference
from thinkstream_model.philox import random_words
from thinkstream_model.sampler import NOT_A_TOKEN, SamplingInputs

INFINITY = float("inf")
FULL_VOCAB, FULL_VALID_IDS = 152_064, 151_669


@triton.jit
def _store_words(
    seeds: tl.tensor,
    indices: tl.tensor,
    words: tl.tensor,
    num_ids: tl.tensor,
    IDS: tl.constexpr,
) -> None:
    row, first_id = tl.program_id(0), tl.program_id(1) * IDS
    ids = first_id + tl.arange(0, IDS)
    found = kernels.random_words(tl.load(seeds + row), tl.load(indices + row), first_id, IDS)
    tl.store(words + row * num_ids + ids, found.to(tl.int64), mask=ids < num_ids)


@triton.jit
def _store_noise(
    words: tl.tensor,
    noise: tl.tensor,
    num_words: tl.tensor,
    WORDS: tl.constexpr,
) -> None:
    places = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    found = kernels.noise_of(tl.load(words + places, mask=places < num_words, other=0).to(tl.uint32))
    tl.store(noise + places, found, mask=places < num_words)


def _inputs(rows: list[tuple[float, float, int, float]], device: torch.device) -> SamplingInputs:
    """Rows of (temperature, top-p, top-k, min-p); row n has a seed and an index of its own."""
    temperature, top_p, top_k, min_p = zip(*rows, strict=True)
    numbers = torch.arange(len(rows), device=device)
    return SamplingInputs(
        temperature_B=torch.tensor(temperature, device=device),
        top_p_B=torch.tensor(top_p, device=device),
        top_k_B=torch.tensor(top_k, device=device),
        min_p_B=torch.tensor(min_p, device=device),
        seed_B=numbers * 7919 - 5,
        index_B=numbers + (1 << 33),
    )


def _rows(inputs: SamplingInputs, rows: slice) -> SamplingInputs:
    """Some of the rows."""
    names = ("temperature_B", "top_p_B", "top_k_B", "min_p_B", "seed_B", "index_B")
    return replace(inputs, **{name: getattr(inputs, name)[rows] for name in names})


def _logits(num_rows: int, vocab: int, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return 3 * torch.randn(num_rows, vocab, device=device, generator=generator)


def _sample(
    logits_BV: Tensor, inputs: SamplingInputs, num_valid_ids: int, *, is_filtered: bool = True
) -> Tensor:
    return sample_tokens(logits_BV, replace(inputs, unfiltered=not is_filtered), num_valid_ids=num_valid_ids)


def _reference(
    logits_BV: Tensor, inputs: SamplingInputs, num_valid_ids: int, *, is_filtered: bool = True
) -> Tensor:
    inputs = replace(inputs, unfiltered=not is_filtered)
    return sample_tokens_reference(logits_BV, inputs, num_valid_ids=num_valid_ids)


class TestNoise:
    def test_words_are_those_of_torch(self, device: torch.device) -> None:
        seeds = torch.tensor([0, -1, 1 << 40, -(1 << 63), 0x243F_6A88_85A3_08D3], device=device)
        indices = torch.tensor([1, (1 << 33) + 5, 7, (1 << 62) + 3, 2], device=device)
        words = torch.full((5, 1003), -1, device=device)
        _store_words[(5, triton.cdiv(1003, 256))](seeds, indices, words, 1003, IDS=256)
        assert torch.equal(words, random_words(seeds, indices, 1003))

    def test_noise_is_exact_to_the_last_bits(self, device: torch.device) -> None:
        """Also where words are extreme, and where log and log1p have nothing but cancellation."""
        edges = [0, 1, 2, 3, 2**31, 2**32 - 1, 2**32 - 128, 2**32 - 129, 1_257_942_016, 2_714_937_127]
        near_zero = list(range(2_714_937_000, 2_714_937_400))  # where the noise changes its sign
        powers = [2**n + d for n in range(3, 32) for d in (-1, 0, 1)]
        generator = torch.Generator().manual_seed(0)
        words = torch.cat(
            [
                torch.tensor(edges + near_zero + powers),
                torch.randint(0, 2**32, (20_000,), generator=generator),
                torch.randint(0, 2**20, (5_000,), generator=generator),
            ]
        ).to(device)
        noise = torch.full(words.shape, float("nan"), device=device)
        _store_noise[(triton.cdiv(len(words), 1024),)](words, noise, len(words), WORDS=1024)
        uniform = ((words.float() + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24).double()
        expected = -(-(-uniform).log1p()).log()
        assert torch.isfinite(noise).all()
        assert ((noise - expected).abs() / expected.abs().clamp(min=1.0)).max() < 2.5e-7


class TestUnfiltered:
    @pytest.mark.parametrize("num_valid_ids", [1, 500, 2048, 3001])
    def test_tokens_are_those_of_torch(self, device: torch.device, num_valid_ids: int) -> None:
        temperatures = [0.0, 1.0, 0.6, 1e-6, 2.5] * 3
        inputs = _inputs([(temperature, 1.0, 0, 0.0) for temperature in temperatures], device)
        logits_BV = _logits(len(temperatures), num_valid_ids + 7, device)
        logits_BV[:, num_valid_ids:] = 50.0
        token_ids_B = _sample(logits_BV, inputs, num_valid_ids, is_filtered=False)
        assert torch.equal(token_ids_B, _reference(logits_BV, inputs, num_valid_ids, is_filtered=False))

    def test_of_equal_scores_the_lowest_id_wins(self, device: torch.device) -> None:
        logits_BV = torch.full((5, 5000), -1.0, device=device)
        logits_BV[0, [4321, 2050, 2049]] = 2.0
        logits_BV[1, 70], logits_BV[1, 71] = 0.0, -0.0
        logits_BV[2, 80], logits_BV[2, 81] = -0.0, 0.0
        logits_BV[4] = -INFINITY
        token_ids_B = _sample(logits_BV, _inputs([(0.0, 1.0, 0, 0.0)] * 5, device), 5000, is_filtered=False)
        assert token_ids_B.tolist() == [2049, 70, 80, 0, 0]

    def test_infinite_logits(self, device: torch.device) -> None:
        logits_BV = _logits(4, 600, device)
        logits_BV[:, 5:] = -INFINITY
        logits_BV[3, 333] = INFINITY
        inputs = _inputs([(1.0, 1.0, 0, 0.0)] * 4, device)
        token_ids_B = _sample(logits_BV, inputs, 600, is_filtered=False)
        assert torch.equal(token_ids_B, _reference(logits_BV, inputs, 600, is_filtered=False))
        assert token_ids_B[3] == 333

    def test_frequencies(self, device: torch.device) -> None:
        num_draws = 100_000 if device.type == "cuda" else 100
        shares_V = torch.tensor([0.4, 0.05, 0.25, 0.2, 0.1])
        inputs = _inputs([(0.5, 1.0, 0, 0.0)] * num_draws, device)
        logits_BV = (0.5 * shares_V.log()).to(device).expand(num_draws, -1)
        token_ids_B = _sample(logits_BV, inputs, 5, is_filtered=False)
        counts_V = torch.bincount(token_ids_B.cpu(), minlength=5)
        expected_V = shares_V * num_draws
        degrees = 4
        chi_square = ((counts_V - expected_V) ** 2 / expected_V).sum()
        assert chi_square < degrees + 4 * math.sqrt(2 * degrees) + 1

    def test_no_rows(self, device: torch.device) -> None:
        none = _rows(_inputs([(1.0, 1.0, 0, 0.0)], device), slice(0, 0))
        assert _sample(_logits(0, 9, device), none, 9).shape == (0,)


MIXED_ROWS = [
    (1.0, 1.0, 0, 0.0),
    (0.0, 0.5, 3, 0.1),
    (0.0, 0.0, 0, 0.0),  # a padding row
    (0.7, 1.0, 20, 0.0),
    (1.3, 0.9, 0, 0.0),
    (0.6, 0.95, 20, 0.0),
    (0.8, 0.8, 5, 0.05),
    (1.0, 1.0, 0, 0.1),
    (1.0, 1.0, 1, 0.0),
    (1.0, 1e-6, 0, 0.0),
    (1.0, 1.0, 0, 1.0),
    (2.0, 1.0, 10_000, 0.0),
    (4.0, 0.7, 400, 0.0),
]


class TestFiltered:
    def test_tokens_are_those_of_torch(self, device: torch.device) -> None:
        """All kinds of rows in one batch."""
        logits_BV = _logits(len(MIXED_ROWS), 1010, device, seed=1)
        logits_BV[:, 1001:] = 50.0
        inputs = _inputs(MIXED_ROWS, device)
        token_ids_B = _sample(logits_BV, inputs, 1001)
        assert torch.equal(token_ids_B, _reference(logits_BV, inputs, 1001))

    def test_a_row_is_the_same_alone(self, device: torch.device) -> None:
        rows = MIXED_ROWS[2:7]
        logits_BV, inputs = _logits(len(rows), 700, device, seed=2), _inputs(rows, device)
        together = _sample(logits_BV, inputs, 700)
        for row in (0, 2, 4):
            alone = _rows(inputs, slice(row, row + 1))
            assert torch.equal(_sample(logits_BV[row : row + 1], alone, 700), together[row : row + 1])

    def test_a_row_that_is_not_all_numbers_gets_no_token(self, device: torch.device) -> None:
        inputs = _inputs(
            [(1.0, 1.0, 0, 0.0), (0.0, 1.0, 0, 0.0), (0.6, 0.9, 20, 0.1), (1.0, 1.0, 3, 0.0)], device
        )
        logits_BV = _logits(4, 2500, device)
        right = _sample(logits_BV, inputs, 2400).tolist()
        logits_BV[:3, 2300] = -float("nan")
        logits_BV[3, 2401] = float("nan")  # not a valid id
        found = _sample(logits_BV, inputs, 2400).tolist()
        assert found == [NOT_A_TOKEN] * 3 + [right[3]]

    def test_unfiltered_is_only_a_hint(self, device: torch.device) -> None:
        logits_BV, inputs = _logits(6, 900, device), _inputs([(0.9, 1.0, 0, 0.0)] * 6, device)
        without = _sample(logits_BV, inputs, 900, is_filtered=False)
        assert torch.equal(_sample(logits_BV, inputs, 900), without)


def _special_logits(device: torch.device) -> dict[str, Tensor]:
    random_V = _logits(1, 391, device, seed=4)[0]
    ids_V = torch.arange(391, device=device)
    return {
        "random": random_V,
        "all negative": random_V - 100.0,
        "equal": torch.full_like(random_V, 1.25),
        "few values": (random_V / 2).round(),
        "few finite": torch.where(ids_V % 100 == 7, random_V, -INFINITY),
        "nothing": torch.full_like(random_V, -INFINITY),
        "far apart": random_V * 1e30,
    }


SPECIAL_LOGITS = list(_special_logits(torch.device("cpu")))


NO_NOISE = [1e-45, 1e-38, 1e-36, 1e-30, 1e-10]


class TestTemperaturesNextToNone:
    @pytest.mark.parametrize(
        "top_p, top_k, min_p", [(1.0, 0, 0.0), (1.0, 20, 0.0), (0.9, 0, 0.0), (1.0, 0, 0.1)]
    )
    def test_take_the_likeliest(self, device: torch.device, top_p: float, top_k: int, min_p: float) -> None:
        inputs = _inputs([(temperature, top_p, top_k, min_p) for temperature in NO_NOISE], device)
        for scale in (1.0, 20.0):
            logits_BV = _logits(len(NO_NOISE), 2500, device, seed=6) * scale
            token_ids_B = _sample(logits_BV, inputs, 2500, is_filtered=(top_p, top_k, min_p) != (1.0, 0, 0.0))
            assert torch.equal(token_ids_B, logits_BV.argmax(dim=1))


class TestThreshold:
    @pytest.mark.parametrize("name", SPECIAL_LOGITS)
    def test_keeps_what_the_reference_keeps(self, device: torch.device, name: str) -> None:
        rows = [(0.5, 1.0, 6, 0.0), (1.0, 0.6, 0, 0.0), (1.5, 0.999, 20, 0.0)]
        logits_BV = _special_logits(device)[name].repeat(len(rows), 1)
        inputs = _inputs(rows, device)
        lowest_B1 = lowest_kept(logits_BV, inputs, num_valid_ids=380).unsqueeze(1)
        expected_B1 = lowest_kept_reference(logits_BV, inputs, num_valid_ids=380).unsqueeze(1)
        scaled_BV = logits_BV[:, :380] / inputs.temperature_B.unsqueeze(1)
        # The kernel multiplies by the inverse: what ties there may differ here by a last bit.
        slack_B1 = torch.where(lowest_B1.isinf(), 0.0, lowest_B1.abs() * 2e-7)
        assert torch.equal(scaled_BV >= lowest_B1 - slack_B1, scaled_BV >= expected_B1)

    def test_ties_at_the_top_k_stay_together_but_count_once_for_top_p(self, device: torch.device) -> None:
        """Two places for four of equal mass: below the first alone top-p keeps one, and with it all."""
        logits_BV = torch.full((3, 400), -3.0, device=device)
        logits_BV[:, [10, 150, 290, 399]] = 1.0
        logits_BV[:, 20] = 2.0
        # Of mass 1 + 2 / e, the first has 0.576.
        inputs = _inputs([(1.0, 1.0, 3, 0.0), (1.0, 0.57, 3, 0.0), (1.0, 0.58, 3, 0.0)], device)
        assert lowest_kept(logits_BV, inputs, num_valid_ids=400).tolist() == [1.0, 2.0, 1.0]


@pytest.mark.gpu
class TestFullShape:
    @pytest.mark.parametrize("num_rows", [1, 3, 256])
    @pytest.mark.parametrize("is_filtered", [False, True])
    def test_tokens_are_those_of_torch(self, device: torch.device, num_rows: int, is_filtered: bool) -> None:
        rows = [MIXED_ROWS[(row + 5) % len(MIXED_ROWS)] for row in range(num_rows)]
        if not is_filtered:
            rows = [(temperature, 1.0, 0, 0.0) for temperature, _, _, _ in rows]
        logits_BV, inputs = _logits(num_rows, FULL_VOCAB, device), _inputs(rows, device)
        found = _sample(logits_BV, inputs, FULL_VALID_IDS, is_filtered=is_filtered)
        expected = _reference(logits_BV, inputs, FULL_VALID_IDS, is_filtered=is_filtered)
        assert (found != expected).sum() <= num_rows // 100  # two scores may differ by less than rounding
        for row in range(0, num_rows, 37):
            alone = _rows(inputs, slice(row, row + 1))
            token_id = _sample(logits_BV[row : row + 1], alone, FULL_VALID_IDS, is_filtered=is_filtered)
            assert token_id == found[row]

    @pytest.mark.parametrize("scale", [1.0, 8.0])
    def test_thresholds(self, device: torch.device, scale: float) -> None:
        logits_BV = _logits(len(MIXED_ROWS), FULL_VOCAB, device) * scale
        inputs = _inputs(MIXED_ROWS, device)
        lowest_B1 = lowest_kept(logits_BV, inputs, num_valid_ids=FULL_VALID_IDS).unsqueeze(1)
        expected_B1 = lowest_kept_reference(logits_BV, inputs, num_valid_ids=FULL_VALID_IDS).unsqueeze(1)
        scaled_BV = logits_BV[:, :FULL_VALID_IDS] / inputs.temperature_B.clamp(min=1e-9).unsqueeze(1)
        found_B, expected_B = (
            (scaled_BV >= lowest_B1).sum(1).double(),
            (scaled_BV >= expected_B1).sum(1).double(),
        )
        # Where tens of thousands are kept, float32 masses may miss the last few.
        assert ((found_B - expected_B).abs() <= 1 + 1e-3 * expected_B).all()

    def test_under_capture(self, device: torch.device) -> None:
        rows = [MIXED_ROWS[row % len(MIXED_ROWS)] for row in range(16)]
        logits_BV, inputs = _logits(16, FULL_VOCAB, device), _inputs(rows, device)
        _sample(logits_BV, inputs, FULL_VALID_IDS)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            token_ids_B = _sample(logits_BV, inputs, FULL_VALID_IDS)
        inputs.index_B.add_(1)
        logits_BV.copy_(_logits(16, FULL_VOCAB, device, seed=9))
        graph.replay()
        assert torch.equal(token_ids_B, _sample(logits_BV, inputs, FULL_VALID_IDS))
