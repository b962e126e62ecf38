"""What the sampler promises: support, distribution, penalties, and rows that do not mix."""

# torch's stubs leave `tolist` untyped.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from thinkstream_model.sampler import (
    NOT_A_TOKEN,
    Sampled,
    SamplingExtras,
    SamplingInputs,
    apply_extras,
    sample,
)

VOCAB = 50


def _inputs(num_rows: int, extras: SamplingExtras | None = None, **fields: Any) -> SamplingInputs:
    """The same sampling for every row; row n has seed n, unless told otherwise."""

    def full(name: str, default: float) -> Tensor:
        return torch.full((num_rows,), float(fields.pop(name, default)))

    return SamplingInputs(
        temperature_B=full("temperature", 1.0),
        top_p_B=full("top_p", 1.0),
        top_k_B=full("top_k", 0).long(),
        min_p_B=full("min_p", 0.0),
        seed_B=fields.pop("seed_B", torch.arange(num_rows)),
        index_B=torch.full((num_rows,), fields.pop("index", 1)),
        extras=extras,
        **fields,
    )


def _extras(num_rows: int, **fields: Any) -> SamplingExtras:
    off = {"repetition_B": 1.0, "presence_B": 0.0, "frequency_B": 0.0, "bias_values_BK": 0.0}
    tensors = {name: torch.full((num_rows,), value) for name, value in off.items()}
    tensors["bias_values_BK"] = torch.zeros(num_rows, 1)
    for name in ("prompt_ids_BL", "output_ids_BL", "bias_ids_BK"):
        tensors[name] = torch.full((num_rows, 1), -1)
    return SamplingExtras(**{**tensors, **fields})


def _logits(num_rows: int = 1, seed: int = 0) -> Tensor:
    return 2 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def _draw(logits_V: Tensor, num_draws: int, **fields: Any) -> Tensor:
    """Draws of one row under many seeds."""
    logits_BV = logits_V.expand(num_draws, -1)
    return sample(logits_BV, _inputs(num_draws, **fields), num_valid_ids=VOCAB).token_ids_B


def _expected_probabilities(
    logits_V: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> dict[int, float]:
    """The filters one after the other, in plain Python."""
    scaled = [x / temperature for x in logits_V.tolist()]
    order: list[int] = logits_V.argsort(descending=True).tolist()
    order = order[:top_k] if top_k else order
    weights = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    total, before, kept = sum(weights.values()), 0.0, []
    for i in order:
        if before >= top_p * total and top_p < 1:
            break
        before += weights[i]
        if weights[i] >= min_p:
            kept.append(i)
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


class TestDistribution:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"temperature": 0.6},
            {"temperature": 1.7, "top_k": 7},
            {"top_p": 0.8},
            {"temperature": 1.3, "top_k": 12, "top_p": 0.7},
            {"min_p": 0.1},
            {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.02},
        ],
        ids=str,
    )
    def test_support_and_chi_square(self, fields: dict[str, Any]) -> None:
        logits_V, num_draws = _logits(seed=3)[0], 20_000
        expected = _expected_probabilities(logits_V, **fields)
        counts_V = torch.bincount(_draw(logits_V, num_draws, **fields), minlength=VOCAB)
        assert {i for i, count in enumerate(counts_V.tolist()) if count} <= set(expected)
        # Cells that are expected less than 5 times are thrown together.
        rare = [i for i, p in expected.items() if p * num_draws < 5]
        cells = [([i], p) for i, p in expected.items() if i not in rare]
        if rare:
            cells.append((rare, sum(expected[i] for i in rare)))
        chi_square = sum(
            (counts_V[ids].sum().item() - p * num_draws) ** 2 / (p * num_draws) for ids, p in cells
        )
        degrees = len(cells) - 1
        # The mean of chi-square is its degrees of freedom, its variance twice that.
        assert chi_square < degrees + 4 * math.sqrt(2 * degrees) + 1

    def test_draws_of_one_seed_at_many_places_are_independent(self) -> None:
        num_draws = 20_000
        inputs = _inputs(num_draws, seed_B=torch.full((num_draws,), 11))
        inputs = replace(inputs, index_B=torch.arange(1, num_draws + 1))
        logits_BV = torch.zeros(num_draws, VOCAB)
        ids = sample(logits_BV, inputs, num_valid_ids=4).token_ids_B
        pairs = torch.bincount(ids[:-1] * 4 + ids[1:], minlength=16).double()
        expected = (num_draws - 1) / 16
        assert ((pairs - expected) ** 2 / expected).sum() < 15 + 4 * math.sqrt(30)


class TestRows:
    def test_a_row_is_the_same_alone_and_in_company(self) -> None:
        """Whatever the others ask for: the hints on the host change no token."""
        logits_BV = _logits(64, seed=5)
        generator = torch.Generator().manual_seed(1)
        inputs = SamplingInputs(
            temperature_B=torch.rand(64, generator=generator) * (torch.arange(64) % 5 > 0),
            top_p_B=torch.rand(64, generator=generator) * 0.5 + 0.5,
            top_k_B=torch.arange(64) % 9,
            min_p_B=torch.rand(64, generator=generator) * 0.1,
            seed_B=torch.arange(64) * 12345,
            index_B=torch.arange(64) + 1,
        )
        together = sample(logits_BV, inputs, num_valid_ids=VOCAB).token_ids_B
        for row in range(64):
            one = slice(row, row + 1)
            alone = SamplingInputs(
                temperature_B=inputs.temperature_B[one],
                top_p_B=inputs.top_p_B[one],
                top_k_B=inputs.top_k_B[one],
                min_p_B=inputs.min_p_B[one],
                seed_B=inputs.seed_B[one],
                index_B=inputs.index_B[one],
                greedy=not inputs.temperature_B[row],
                max_top_k=int(inputs.top_k_B[row]),
            )
            token_ids = sample(logits_BV[one], alone, num_valid_ids=VOCAB).token_ids_B
            assert token_ids.item() == together[row]

    def test_unfiltered_is_only_a_hint(self) -> None:
        logits_BV, inputs = _logits(200), _inputs(200)
        with_filters = sample(logits_BV, inputs, num_valid_ids=VOCAB).token_ids_B
        without = sample(logits_BV, replace(inputs, unfiltered=True), num_valid_ids=VOCAB).token_ids_B
        assert torch.equal(with_filters, without)

    def test_temperature_zero_is_argmax_beside_random_rows(self) -> None:
        logits_BV = _logits(40)
        inputs = replace(_inputs(40), temperature_B=torch.arange(40) % 2 * 1.0)
        token_ids_B = sample(logits_BV, inputs, num_valid_ids=VOCAB).token_ids_B
        assert torch.equal(token_ids_B[::2], logits_BV[::2].argmax(-1))
        assert not torch.equal(token_ids_B[1::2], logits_BV[1::2].argmax(-1))

    def test_seed_and_place_decide(self) -> None:
        logits_BV = torch.zeros(30, VOCAB)
        first, again, later = (
            sample(logits_BV, _inputs(30, index=index), num_valid_ids=VOCAB).token_ids_B
            for index in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert (first != later).sum() > 20


def test_padding_rows_of_the_vocabulary_are_never_chosen() -> None:
    logits_BV = torch.zeros(500, VOCAB)
    logits_BV[:, 40:] = 50.0
    cases: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"greedy": True}, {"top_k": 5, "max_top_k": 5}]
    for fields in cases:
        result = sample(logits_BV, _inputs(500, **fields, num_logprobs=4), num_valid_ids=40)
        assert result.token_ids_B.max() < 40
        assert result.top_ids_BK is not None
        assert result.top_ids_BK.max() < 40


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.5, "min_p": 0.1}, {"num_logprobs": 3}]
)
def test_a_row_that_is_not_all_numbers_gets_no_token(fields: dict[str, Any]) -> None:
    logits_BV = _logits(3)
    right = sample(logits_BV, _inputs(3, **fields), num_valid_ids=VOCAB).token_ids_B
    logits_BV[1, 7] = float("nan")
    found = sample(logits_BV, _inputs(3, **fields), num_valid_ids=VOCAB).token_ids_B
    assert found.tolist() == [int(right[0]), NOT_A_TOKEN, int(right[2])]


def test_ties_at_the_top_k_stay_together() -> None:
    logits_V = torch.full((VOCAB,), -3.0)
    logits_V[10:14] = 1.0
    for hint in (0, 2):
        assert set(_draw(logits_V, 300, top_k=2, max_top_k=hint).tolist()) == {10, 11, 12, 13}


@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}])
@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 2.0**-126, 1e-36, 1e-30, 1e-10])
def test_a_temperature_next_to_none_is_greedy(temperature: float, filters: dict[str, Any]) -> None:
    logits_BV = 10 * _logits(num_rows=20)
    sampled = sample(logits_BV, _inputs(20, temperature=temperature, **filters), num_valid_ids=VOCAB)
    assert torch.equal(sampled.token_ids_B, logits_BV.argmax(dim=-1))


def test_tiny_temperature_and_top_p_are_greedy() -> None:
    logits_V = _logits(seed=8)[0]
    assert set(_draw(logits_V, 50, temperature=1e-6).tolist()) == {int(logits_V.argmax())}
    assert set(_draw(logits_V, 50, top_p=1e-6).tolist()) == {int(logits_V.argmax())}
    assert set(_draw(logits_V, 50, min_p=1.0).tolist()) == {int(logits_V.argmax())}
    assert set(_draw(1e-9 * logits_V, 50, min_p=1.0).tolist()) == {int(logits_V.argmax())}


class TestExtras:
    def test_penalties_and_bias_equal_a_plain_loop(self) -> None:
        logits_BV = _logits(6, seed=9)
        prompt = [[1, 2, 3], [4, 4, -1], [-1, -1, -1], [0, 49, 7], [5, -1, -1], [999, 2**31, 8]]
        output = [[2, 2, 9], [-1, -1, -1], [8, 8, 8], [7, 7, 3], [5, 5, -1], [50, 8, -1]]
        repetition, presence = [1.3, 1.0, 0.7, 2.0, 1.1, 1.5], [0.0, 0.5, -0.3, 1.0, 2.0, 0.25]
        frequency, bias_ids = [0.2, 0.0, 0.1, -0.4, 1.0, 0.5], [[7], [-1], [8], [49], [999], [50]]
        bias = [[1.5], [0.0], [-100.0], [2.0], [3.0], [3.0]]
        extras = SamplingExtras(
            repetition_B=torch.tensor(repetition),
            presence_B=torch.tensor(presence),
            frequency_B=torch.tensor(frequency),
            prompt_ids_BL=torch.tensor(prompt),
            output_ids_BL=torch.tensor(output),
            bias_ids_BK=torch.tensor(bias_ids),
            bias_values_BK=torch.tensor(bias),
        )
        expected_BV = logits_BV.clone()
        for row in range(6):
            for i in range(VOCAB):
                x = logits_BV[row, i].item() + (bias[row][0] if bias_ids[row][0] == i else 0.0)
                if i in prompt[row] or i in output[row]:
                    x = x / repetition[row] if x > 0 else x * repetition[row]
                count = output[row].count(i)
                expected_BV[row, i] = x - frequency[row] * count - presence[row] * (count > 0)
        torch.testing.assert_close(apply_extras(logits_BV, extras), expected_BV)

    def test_neutral_extras_change_nothing(self) -> None:
        logits_BV, inputs = _logits(30), _inputs(30)
        plain = sample(logits_BV, inputs, num_valid_ids=VOCAB).token_ids_B
        neutral = sample(logits_BV, replace(inputs, extras=_extras(30)), num_valid_ids=VOCAB).token_ids_B
        assert torch.equal(plain, neutral)

    def test_greedy_rows_are_penalized_too(self) -> None:
        logits_BV = _logits(1)
        best, second = logits_BV[0].topk(2).indices.tolist()
        extras = _extras(1, bias_ids_BK=torch.tensor([[best]]), bias_values_BK=torch.tensor([[-100.0]]))
        inputs = _inputs(1, extras, greedy=True)
        assert sample(logits_BV, inputs, num_valid_ids=VOCAB).token_ids_B.tolist() == [second]


class TestLogprobs:
    def _sample(self, num_logprobs: int) -> tuple[Tensor, Sampled]:
        logits_BV = _logits(9, seed=2)
        inputs = _inputs(9, temperature=1.5, top_k=3, num_logprobs=num_logprobs)
        return logits_BV.log_softmax(-1), sample(logits_BV, inputs, num_valid_ids=VOCAB)

    def test_none(self) -> None:
        _, result = self._sample(0)
        assert (result.logprob_B, result.top_ids_BK, result.top_logprobs_BK) == (None, None, None)

    @pytest.mark.parametrize("num_alternatives", [0, 1, 5])
    def test_are_the_models_own(self, num_alternatives: int) -> None:
        logprobs_BV, result = self._sample(num_alternatives + 1)
        assert result.logprob_B is not None
        assert result.top_ids_BK is not None
        assert result.top_logprobs_BK is not None
        assert torch.equal(result.logprob_B, logprobs_BV[torch.arange(9), result.token_ids_B])
        expected = logprobs_BV.sort(dim=-1, descending=True)
        assert torch.equal(result.top_ids_BK, expected.indices[:, :num_alternatives])
        assert torch.equal(result.top_logprobs_BK, expected.values[:, :num_alternatives])


def test_logits_are_not_changed() -> None:
    logits_BV = _logits(4)
    before = logits_BV.clone()
    sample(logits_BV, _inputs(4, _extras(4), top_k=3, top_p=0.9, num_logprobs=3), num_valid_ids=VOCAB)
    assert torch.equal(logits_BV, before)
