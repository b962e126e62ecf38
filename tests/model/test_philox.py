"""The generator against its published vectors, and the noise made of it."""

from __future__ import annotations

import pytest
import torch

from thinkstream_model.philox import gumbel_noise, philox_4x32, random_words

# Known answers published with Random123: four counter words, two key words, four results.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[torch.Tensor]:
    return [torch.tensor([int(word, 16)]) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = _words(counter)
    k0, k1 = _words(key)
    result = philox_4x32((c0, c1, c2, c3), (k0, k1))
    assert " ".join(f"{word.item():08x}" for word in result) == expected


def test_words_follow_seed_index_and_id() -> None:
    seed, index = 0x243F_6A88_85A3_08D3 - (1 << 63), (7 << 32) + 5
    words_BV = random_words(torch.tensor([0, seed]), torch.tensor([1, index]), 11)
    assert words_BV.shape == (2, 11)
    key = (torch.tensor([seed & 0xFFFF_FFFF]), torch.tensor([(seed >> 32) & 0xFFFF_FFFF]))
    for token_id in range(11):
        counter = tuple(torch.tensor([word]) for word in (token_id // 4, 0, 5, 7))
        expected = philox_4x32((counter[0], counter[1], counter[2], counter[3]), key)[token_id % 4]
        assert words_BV[1, token_id] == expected.item()


def test_a_row_does_not_depend_on_the_others_nor_on_the_vocabulary() -> None:
    seeds, indices = torch.arange(33) * 7919 - 5, torch.arange(33) + 1
    noise_BV = gumbel_noise(seeds, indices, 1003)
    for row in (0, 1, 32):
        alone_V = gumbel_noise(seeds[row : row + 1], indices[row : row + 1], 2000)[0, :1003]
        assert torch.equal(noise_BV[row], alone_V)


def test_noise_is_gumbel() -> None:
    noise = gumbel_noise(torch.arange(8), torch.ones(8, dtype=torch.int64), 25_000).double().flatten()
    assert torch.isfinite(noise).all()
    assert abs(noise.mean().item() - 0.5772) < 0.01
    assert abs(noise.var().item() - torch.pi**2 / 6) < 0.03
    uniform = torch.exp(-torch.exp(-noise)).sort().values
    expected = (torch.arange(uniform.numel()) + 0.5) / uniform.numel()
    # Kolmogorov-Smirnov at 0.1 %.
    assert (uniform - expected).abs().max() < 1.95 / uniform.numel() ** 0.5


def test_extreme_words_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(*_: object) -> torch.Tensor:
        return torch.tensor([[0, 1, 0xFFFF_FFFF]])

    monkeypatch.setattr("thinkstream_model.philox.random_words", words)
    noise = gumbel_noise(torch.zeros(1), torch.zeros(1), 3)
    assert torch.isfinite(noise).all()
    assert noise[0, 0] > noise[0, 1] > noise[0, 2]
